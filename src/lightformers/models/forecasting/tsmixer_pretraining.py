"""Masked pre-training of TSMixer: hidden patches are put together again from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from lightformers.errors import UserError
from lightformers.kernels.dropout import dropout
from lightformers.models.forecasting.scale import scaled
from lightformers.models.forecasting.tsmixer import PatchMixer, TSMixer, TSMixerConfig, started
from lightformers.models.registry import register
from lightformers.parts.series import patches


@dataclass
class Reconstruction(ModelOutput):
    """reconstruction, patches: (batch, channels, patches, patch length), in the scale of the window; what was made, and
    what is there. hidden: (batch, channels, patches), true where a patch was hidden. loss: over the hidden ones."""

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    patches: Tensor | None = None
    hidden: Tensor | None = None


def draw_hidden(batch: int, channels: int, count: int, ratio: float, last: int | None = None) -> Tensor:
    """(batch, channels, count) booleans, the same for all channels: so many at the end, or a share drawn at random.

    At random the first int(count * (1 - ratio)) in the order of uniform noise stay. Raises UserError for what would hide
    nothing that could be learned from.
    """
    if last is not None:
        if not 0 < last < count:
            raise UserError(f"hide more than none and less than all {count} patches, not {last}")
        hidden = torch.arange(count).expand(batch, 1, count) >= count - last
    else:
        if not 0 <= ratio < 1:
            raise UserError(f"the share of hidden patches is in [0, 1), not {ratio}")
        order = torch.rand(batch, 1, count).argsort(-1).argsort(-1)
        hidden = order >= int(count * (1 - ratio))
    return hidden.expand(batch, channels, count)


class TSMixerForPretraining(PreTrainedModel):
    """The backbone of `TSMixer` with a head that reads the values of a patch from its state.

    Hidden patches are 0 (the mean) before they are embedded. The loss is the squared error of hidden patches, in the scale
    of the window, over observed values; transformers counts missing values too.
    """

    config_class = TSMixerConfig
    base_model_prefix = ""
    main_input_name = "past_values"
    _no_split_modules = ["MixerBlock"]
    config: Any

    def __init__(self, config: TSMixerConfig) -> None:
        super().__init__(config)
        self.mixer = PatchMixer(config)
        self.head = nn.Linear(config.hidden_size, config.patch_length)
        self._without_values = self.head.weight.is_meta
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        started(module, self.config.initializer_range, self._without_values)

    def forward(
        self,
        past_values: Tensor,
        past_observed_mask: Tensor | None = None,
        hidden: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Reconstruction:
        """hidden: (batch, channels, patches), true for what is hidden; drawn as the configuration says where it is None."""
        config = self.config
        series, _ = scaled(past_values, past_observed_mask, config)
        size, stride = config.patch_length, config.patch_stride
        whole = patches(series, size, stride)
        batch, channels, count = whole.shape[:3]
        if hidden is None:
            hidden = draw_hidden(batch, channels, count, config.mask_ratio, config.mask_last)
            hidden = hidden.to(whole.device)
        elif hidden.shape != whole.shape[:3]:
            raise UserError(f"hidden is {(batch, channels, count)}, not {tuple(hidden.shape)}")
        states = self.mixer(torch.where(hidden[..., None].bool(), 0.0, whole)).permute(1, 2, 0, 3)
        made = self.head(dropout(states, config.head_dropout, self.training))
        seen = None if past_observed_mask is None else patches(past_observed_mask, size, stride)
        loss = masked_error(made, whole, hidden, seen)
        found = Reconstruction(loss=loss, reconstruction=made, patches=whole, hidden=hidden)
        return found if return_dict is not False else found.to_tuple()  # type: ignore[return-value]

    def training_loss(self, inputs: dict[str, Tensor], future: Any = None, seen: Any = None) -> Tensor:
        """The loss of a batch; the future is not read."""
        found = self(inputs["past_values"], inputs.get("past_observed_mask"))
        return found.loss  # type: ignore[no-any-return]

    def forecaster(self, prediction_length: int | None = None, **fields: Any) -> TSMixer:
        """A forecaster with a copy of this backbone and a new head. fields: of its configuration, such as head_dropout."""
        kept = {
            k: v
            for k, v in self.config.to_dict().items()
            if k not in ("architectures", "transformers_version")
        }
        kept.pop("model_type", None)
        length = self.config.prediction_length if prediction_length is None else prediction_length
        made = TSMixer(TSMixerConfig(**{**kept, "prediction_length": length, **fields}))
        made.mixer.load_state_dict(self.mixer.state_dict())
        return made


def masked_error(made: Tensor, whole: Tensor, hidden: Tensor, seen: Tensor | None = None) -> Tensor:
    """Mean squared error of the hidden patches; of partly seen ones, of what was seen."""
    apart = (made.float() - whole).square()
    if seen is None:
        each, counted = apart.mean(-1), hidden
    else:
        seen = seen.bool()
        each = torch.where(seen, apart, 0.0).sum(-1) / seen.sum(-1).clamp(min=1)
        counted = hidden & seen.any(-1)
    return torch.where(counted, each, 0.0).sum() / (counted.sum() + 1e-10)


register()
