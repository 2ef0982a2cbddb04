"""MAE: masked autoencoders are scalable vision learners (He et al., arXiv:2111.06377).

A random 75 % of the patches is hidden. The encoder sees the others only; a narrow decoder gets
their encodings and a mask token for each hidden patch, and predicts pixels (Sec. 3):

    L = mean over hidden patches i of |pred_i - target_i|^2 / P,
    target_i = (x_i - mean(x_i)) / std(x_i)   with `loss.norm_pix`, else the pixels x_i

Afterwards the decoder is dropped: `params/encoder` is a plain ViT.
"""

import jax
import jax.numpy as jnp

from big_vision_like.config import Config, UserError, number, unknown
from big_vision_like.layers.masking import Masking, num_visible, random_masking
from big_vision_like.layers.patch_embed import grid_of, patchify, unpatchify
from big_vision_like.losses import masked
from big_vision_like.method import Aux, Batch, Method, Metrics, Params
from big_vision_like.models import mae_decoder, vit

EMBED = ("cls", "gap")


def make(config: Config) -> Method:
  """`config.model` is a ViT, `config.decoder` a `mae_decoder`; further keys:

  loss: mask_ratio, norm_pix (whether the target is normalised patch by patch).
  embed: what `image_embed` gives, the class token (`cls`) or the mean over patches (`gap`).

  Raises:
    UserError: an unknown key or name; a mask that leaves no patch hidden or visible; an encoder
      with a head, or without the class token that `embed` asks for.
  """
  encoder = vit.make(**config.model)
  decoder = mae_decoder.make(**config.decoder)
  patch = encoder.patch_size
  mask_ratio, norm_pix = number(config.loss, "mask_ratio"), config.loss.norm_pix
  embed = config.embed
  if embed not in EMBED:
    raise unknown("config.embed", embed, EMBED)
  if embed == "cls" and encoder.pool != "cls":
    raise UserError(
      f"config.embed = 'cls', but config.model.pool = {encoder.pool!r}; set it to cls"
    )
  if encoder.num_classes is not None:
    raise UserError(f"config.model.num_classes = {encoder.num_classes}; MAE's encoder has no head")

  def encode(params: Params, image: jax.Array, **kwargs) -> dict[str, jax.Array]:
    return encoder.apply({"params": params["encoder"]}, image, **kwargs)[1]

  def mask_of(rng: jax.Array, image: jax.Array) -> Masking:
    h, w = grid_of(*image.shape[1:3], patch)
    if not 0 < num_visible(h * w, mask_ratio) < h * w:
      raise UserError(
        f"config.loss.mask_ratio = {mask_ratio} of {h * w} patches; some must be hidden, some not"
      )
    return random_masking(rng, image.shape[0], h * w, mask_ratio)

  def sizes(image: jax.Array) -> dict:
    """What the decoder must know of the image."""
    grid = grid_of(*image.shape[1:3], patch)
    return {"grid": grid, "out_dim": patch[0] * patch[1] * image.shape[-1]}

  def init(rng: jax.Array, batch: Batch) -> tuple[Params, Aux]:
    image, (first, second) = batch["image"], jax.random.split(rng)
    masking = mask_of(rng, image)
    (_, out), variables = encoder.init_with_output(first, image, keep=masking.keep)
    tokens = (out["tokens"], out["prefix"], masking.restore)
    decoded = decoder.init(second, *tokens, **sizes(image))
    return {"encoder": variables["params"], "decoder": decoded["params"]}, {}

  def forward(params: Params, image: jax.Array, rng: jax.Array, train: bool = False):
    """Predictions [B, N, P], targets, the mask [B, N], and mean and std of the patches."""
    mask_rng, drop_rng = jax.random.split(rng)
    masking = mask_of(mask_rng, image)
    out = encode(params, image, keep=masking.keep, train=train, rngs={"dropout": drop_rng})
    tokens = (out["tokens"], out["prefix"], masking.restore)
    pred, _ = decoder.apply({"params": params["decoder"]}, *tokens, train=train, **sizes(image))
    patches = patchify(image, patch)
    normalized, mean, std = masked.normalize_patches(patches)
    return pred, normalized if norm_pix else patches, masking.mask, (mean, std)

  def loss(
    params: Params, aux: Aux, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[Aux, Metrics]]:
    del step
    pred, target, mask, _ = forward(params, batch["image"], rng, train=True)
    return masked.masked_mse(pred, target, mask), (aux, {})

  def loss_per_example(params: Params, aux: Aux, batch: Batch, rng: jax.Array):
    """[B], under the masks of `rng`."""
    pred, target, mask, _ = forward(params, batch["image"], rng)
    return masked.masked_mse_per_example(pred, target, mask)

  def features(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """The encoder's intermediates of the whole image: `tokens` [B, N, D], `prefix`, ..."""
    return encode(params, batch["image"])

  def image_embed(params: Params, aux: Aux, batch: Batch, rng: jax.Array | None = None):
    """[B, H, W, C] -> [B, D], of the whole image."""
    out = encode(params, batch["image"])
    return out["prefix"][:, 0] if embed == "cls" else jnp.mean(out["tokens"], axis=1)

  def reconstruct(params: Params, aux: Aux, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
    """`image`: visible patches pasted, hidden ones predicted; `target`, `mask` [B, H, W, 1].

    With `norm_pix` a prediction is put back by the true mean and spread of its patch, as in the
    paper's pictures; `baseline` is what these alone give: hidden patches in their mean colour.
    """
    image = batch["image"].astype(jnp.float32)
    pred, _, mask, (mean, std) = forward(params, image, rng)
    patches, hidden = patchify(image, patch), mask[:, :, None] > 0
    picture = lambda x: unpatchify(x, sizes(image)["grid"], patch)
    fill = lambda x: picture(jnp.where(hidden, x, patches))
    out = {
      "image": fill(pred * std + mean if norm_pix else pred),
      "target": image,
      "mask": picture(jnp.broadcast_to(mask[:, :, None], (*mask.shape, patch[0] * patch[1]))),
    }
    return out | ({"baseline": fill(mean)} if norm_pix else {})

  return Method(
    init=init,
    loss=loss,
    predict={
      "image_embed": image_embed,
      "features": features,
      "reconstruct": reconstruct,
      "loss_per_example": loss_per_example,
      **vit.predict(encoder, lambda params, aux: params["encoder"]),
    },
  )
