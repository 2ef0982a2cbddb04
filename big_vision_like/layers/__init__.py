"""Parts with parameters that two models share."""
