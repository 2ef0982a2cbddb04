"""Small models of each family, by their Hugging Face config; two flavours where there are two."""

VISION = dict(
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=48,
  image_size=[16, 24],
  patch_size=8,
  num_channels=3,
)
SQUARE = dict(VISION, image_size=16)
TEXT = dict(
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=48,
  vocab_size=50,
  max_position_embeddings=8,
)
ENDS = dict(bos_token_id=48, eos_token_id=49, pad_token_id=1)

CONFIGS = {
  "vit": dict(model_type="vit", **VISION, num_labels=5),
  "vit_eps6": dict(
    model_type="vit", **dict(SQUARE, patch_size=4), num_labels=3, layer_norm_eps=1e-6
  ),
  "vit_mae": dict(
    model_type="vit_mae",
    **SQUARE,
    decoder_hidden_size=16,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=32,
    mask_ratio=0.5,
    norm_pix_loss=True,
    layer_norm_eps=1e-12,
  ),
  "vit_mae_pixels": dict(
    model_type="vit_mae",
    **dict(SQUARE, patch_size=4),
    decoder_hidden_size=24,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=32,
    mask_ratio=0.75,
    norm_pix_loss=False,
    layer_norm_eps=1e-6,
  ),
  "siglip": dict(
    model_type="siglip", text_config=dict(TEXT, projection_size=32), vision_config=SQUARE
  ),
  "clip": dict(
    model_type="clip", text_config=dict(TEXT, **ENDS), vision_config=SQUARE, projection_dim=24
  ),
  "clip_gelu": dict(
    model_type="clip",
    text_config=dict(TEXT, **ENDS, hidden_act="gelu"),
    vision_config=dict(SQUARE, hidden_act="gelu", hidden_size=48, patch_size=4),
    projection_dim=16,
  ),
  "resnet": dict(
    model_type="resnet",
    embedding_size=8,
    hidden_sizes=[32, 64],
    depths=[1, 2],
    layer_type="bottleneck",
    hidden_act="relu",
    num_labels=5,
  ),
  "resnet_basic": dict(
    model_type="resnet",
    embedding_size=8,
    hidden_sizes=[8, 16, 32],
    depths=[2, 1, 1],
    layer_type="basic",
    hidden_act="relu",
    num_labels=4,
  ),
}
BATCH = 4
