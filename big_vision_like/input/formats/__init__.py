"""File formats: from paths and bytes to rows, members, records and pixels."""
