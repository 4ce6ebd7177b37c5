"""TEMPO: a language model, kept as it is, reads trend, season and residual of a series behind a prompt for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightformers.errors import UserError
from lightformers.models.forecasting import frozen_decoder
from lightformers.models.forecasting.output import Forecast, check_past
from lightformers.models.language.layers import drawn
from lightformers.models.registry import register
from lightformers.parts import lora
from lightformers.parts.decomposition import COMPONENTS, Decomposition, decomposition_error
from lightformers.parts.prompts import PromptPool, SemiSoftPrompts
from lightformers.parts.series import Window, patch_count, patches

SENTENCE = "Predict the future time step given the {}"
#: SENTENCE of every component in the words of GPT-2.
GPT2_PROMPTS = tuple((47, 17407, 262, 2003, 640, 2239, 1813, 262, word) for word in (5182, 1622, 29598))
_GPT2 = {"model_type": "gpt2", "n_layer": 6}


class TempoConfig(PretrainedConfig):
    """What a `Tempo` is made of; the defaults are the paper's, on six of GPT-2's twelve layers.

    context_length, prediction_length: steps. num_input_channels: None: any number, each read for itself.
    language_model: fields of a `DecoderConfig`, or of a GPT2Config with "model_type": "gpt2".
    patch_length, stride: of patches, in steps. kernel: of the moving average, odd.
    decompose: False: the window is read whole, behind one prompt.
    prompt: "semi-soft": `prompt_tokens`, one sentence per component, embedded by the language model; "pool": `pool_top`
        of `pool_size` learned prompts of `pool_length` vectors, one pool for all components; None: none.
    lora_rank, lora_alpha, lora_dropout: of the low-rank updates of the projections of attention; rank 0: none.
    tune_norms, tune_positions: whether the language model's norms and table of positions are trained.
    decomposition_weight: of L_dec in the loss. pool_weight: of the pull of keys and summaries towards each other.
    Raises UserError for sizes that do not fit, among them more vectors than the language model has positions.
    """

    model_type = "lightformers-tempo"

    def __init__(
        self,
        context_length: int = 336,
        prediction_length: int = 96,
        num_input_channels: int | None = None,
        language_model: Mapping[str, Any] | None = None,
        patch_length: int = 16,
        stride: int = 8,
        kernel: int = 25,
        decompose: bool = True,
        prompt: Literal["semi-soft", "pool"] | None = "semi-soft",
        prompt_tokens: Sequence[Sequence[int]] = GPT2_PROMPTS,
        pool_size: int = 30,
        pool_top: int = 3,
        pool_length: int = 3,
        lora_rank: int = 16,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.1,
        tune_norms: bool = True,
        tune_positions: bool = True,
        decomposition_weight: float = 0.001,
        pool_weight: float = 0.0,
        **options: Any,
    ) -> None:
        if min(context_length, prediction_length) < 1 or lora_rank < 0:
            raise UserError(
                f"a context of {context_length}, a horizon of {prediction_length} and a rank of {lora_rank} make no model"
            )
        if prompt not in (None, "semi-soft", "pool"):
            raise UserError(f"prompt is 'semi-soft', 'pool' or None, not {prompt!r}")
        if prompt == "semi-soft" and len(prompt_tokens) < (3 if decompose else 1):
            raise UserError(
                f"there is one prompt for each of {', '.join(COMPONENTS)}, not {len(prompt_tokens)}"
            )
        self.context_length, self.prediction_length = context_length, prediction_length
        self.num_input_channels = num_input_channels
        self.language_model = frozen_decoder.plain(_GPT2 if language_model is None else language_model)
        self.patch_length, self.stride, self.kernel, self.decompose = patch_length, stride, kernel, decompose
        self.prompt, self.prompt_tokens = prompt, [list(s) for s in prompt_tokens]
        self.pool_size, self.pool_top, self.pool_length = pool_size, pool_top, pool_length
        self.lora_rank, self.lora_alpha, self.lora_dropout = lora_rank, lora_alpha, lora_dropout
        self.tune_norms, self.tune_positions = tune_norms, tune_positions
        self.decomposition_weight, self.pool_weight = decomposition_weight, pool_weight
        self.patches  # refuses  # noqa: B018
        super().__init__(**{**options, "tie_word_embeddings": False})

    @property
    def components(self) -> int:
        """What the window is read as: three components, or one whole."""
        return len(COMPONENTS) if self.decompose else 1

    @property
    def patches(self) -> int:
        """Patches of a component, whose last value is repeated `stride` times before it is cut."""
        return patch_count(self.context_length + self.stride, self.patch_length, self.stride)

    @property
    def prompt_lengths(self) -> list[int]:
        """Vectors before each component."""
        if self.prompt == "semi-soft":
            return [len(s) for s in self.prompt_tokens[: self.components]]
        return [self.pool_top * self.pool_length if self.prompt else 0] * self.components


class Tempo(PreTrainedModel):
    """TEMPO (Cao et al., 2023, arXiv 2310.04948). (batch, context_length, channels) -> (batch, horizon, channels).

    Every channel is a series for itself. It is brought to mean 0 and deviation 1 with a learned factor and shift (RevIN),
    taken apart into trend, season and residual, each cut into patches and mapped into the width of the language model;
    prompt and patches of all three stand one behind the other, and one causal language model reads them all. What it says
    at the patches is flattened and mapped to the horizon, per component; the forecast is the sum.

    What differs from the paper's code: with semi-soft prompts the patches are not passed through the language model a
    first time where prompts are off; the summary for the pool mixes positions, not numbers that happen to lie side by side
    in memory; patches that do not fit are left out at the oldest end; norms and positions are trained although LoRA's
    wrapper froze them there (`tune_norms`, `tune_positions`); L_dec is added, which the scripts left out by a slip.
    A `Decoder` projects queries, keys and values apart, and each has its own A; GPT-2's fused layer shares one.
    A value that was not observed counts as the mean of its window.
    """

    config_class = TempoConfig
    base_model_prefix = ""
    main_input_name = "past_values"
    _supports_sdpa = True
    _init_weights = drawn
    config: TempoConfig

    def __init__(self, config: TempoConfig) -> None:
        super().__init__(config)
        self.language_model = frozen_decoder.build(config.language_model)
        width, count = frozen_decoder.width(self.language_model), config.components
        most, needed = frozen_decoder.limit(self.language_model), self._positions()
        if most is not None and needed > most:
            raise UserError(
                f"prompts and patches are {needed} vectors, more than the {most} positions of the language model: take "
                "longer patches, a longer stride or a shorter context"
            )
        if config.lora_rank:
            lora.adapt(
                self.language_model, frozen_decoder.PROJECTIONS, config.lora_rank, config.lora_alpha, config.lora_dropout
            )  # fmt: skip
        self.scale, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.decomposition: nn.Module | None = (
            Decomposition(config.context_length, config.kernel) if config.decompose else None
        )
        self.enter = nn.ModuleList(nn.Linear(config.patch_length, width) for _ in range(count))
        self.prompts: Any = None
        if config.prompt == "semi-soft":
            rows = len(frozen_decoder.words(self.language_model))
            self.prompts = SemiSoftPrompts(config.prompt_tokens[:count], rows, width)
        elif config.prompt == "pool":
            self.prompts = PromptPool(
                config.pool_size, config.pool_top, config.pool_length, config.patches, width, config.pool_weight > 0
            )  # fmt: skip
        inner = config.patches * width
        self.leave = nn.ModuleList(nn.Linear(inner, config.prediction_length) for _ in range(count))
        self._without_values = self.scale.is_meta
        self.post_init()
        self.freeze()

    @classmethod
    def prompted(cls, decoder: nn.Module, layers: int | None = None, **fields: Any) -> Tempo:
        """Around copies of a pretrained language model's weights: a `Decoder`, a GPT2Model or a GPT2LMHeadModel.

        layers: of its first blocks; None: all. fields: of `TempoConfig`, `prompt_tokens` in the words of that model
        among them (see `sentences`).
        """
        made, weights = frozen_decoder.shortened(decoder, layers)
        model = cls(TempoConfig(language_model=made, **fields))
        frozen_decoder.fill(model.language_model, weights)
        return model

    def freeze(self) -> None:
        """Lets of the language model only that be trained which the configuration names."""
        frozen_decoder.freeze(self.language_model, self.config.tune_norms, self.config.tune_positions)

    def initialize_weights(self) -> None:
        """Called by transformers when it has loaded: parameters are new ones then, all of them to be trained."""
        super().initialize_weights()
        if hasattr(self, "leave"):
            self.freeze()
            if isinstance(self.prompts, PromptPool) and not self.config.pool_weight:
                self.prompts.keys.requires_grad_(False)
                self.prompts.summary.requires_grad_(False)

    def forward(
        self,
        past_values: Tensor,
        past_observed_mask: Tensor | None = None,
        past_time_features: Tensor | None = None,
        future_time_features: Tensor | None = None,
        future_values: Tensor | None = None,
        frequency: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Forecast:
        """Calendar, future values and frequency are not read."""
        out = Forecast(prediction=self.parts(past_values, past_observed_mask)[0])
        return out if return_dict is not False else out.to_tuple()  # type: ignore[return-value]

    def parts(self, past_values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(forecast (batch, horizon, channels), components of the normalised windows (batch * channels, 3, length), mean
        cosine of the keys that were chosen from the pool, 0 without one)."""
        check_past(past_values, mask, self.config)
        window = Window.of(past_values, mask)
        channels = past_values.shape[2]
        x = window.shrink(past_values, mask).transpose(1, 2).flatten(0, 1) * self.scale + self.shift
        found = x[:, None] if self.decomposition is None else self.decomposition(x)
        said, like = self._said(found)
        said = (said - self.shift) / (self.scale + 1e-10)
        return window.grow(said.unflatten(0, (-1, channels)).transpose(1, 2)), found, like

    def _said(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, components, length) -> (rows, horizon), normalised, and the pool's mean cosine."""
        config = self.config
        wide = nn.functional.pad(found, (0, config.stride), mode="replicate").transpose(1, 2)
        cut = patches(wide, config.patch_length, config.stride)  # (rows, components, patches, patch_length)
        blocks = [enter(cut[:, i]) for i, enter in enumerate(self.enter)]
        like = found.new_zeros(())
        if isinstance(self.prompts, PromptPool):
            chosen = [self.prompts(block) for block in blocks]
            before = [prompt for prompt, _ in chosen]
            like = torch.stack([cosine for _, cosine in chosen]).mean()
        elif self.prompts is not None:
            fixed = self.prompts(frozen_decoder.words(self.language_model))
            before = [prompt[None].expand(len(found), -1, -1) for prompt in fixed]
        else:
            before = [block[:, :0] for block in blocks]
        line = torch.cat([x.to(blocks[0].dtype) for pair in zip(before, blocks) for x in pair], 1)
        states = frozen_decoder.read(self.language_model, line)
        said, at = found.new_zeros(()), 0
        for leave, prompt in zip(self.leave, config.prompt_lengths):
            at += prompt
            said = said + leave(states[:, at : at + config.patches].flatten(1))
            at += config.patches
        return said, like

    def _positions(self) -> int:
        return sum(self.config.prompt_lengths) + self.config.components * self.config.patches

    def training_loss(
        self,
        inputs: Mapping[str, Tensor],
        future_values: Tensor,
        future_observed_mask: Tensor | None = None,
        components: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the forecast over observed values, with L_dec where `components` are given.

        components: (batch, context_length, channels, 3), trend, season and residual of the windows by STL of the training
            rows (`train.stl`): only targets, never inputs, so nothing of the future is seen when forecasting.
        """
        said, found, like = self.parts(inputs["past_values"], inputs.get("past_observed_mask"))
        error = (said - future_values).square()
        if future_observed_mask is None:
            loss = error.mean()
        else:
            seen = future_observed_mask.to(error.dtype)
            loss = torch.where(future_observed_mask.bool(), error, 0.0).sum() / seen.sum().clamp(min=1)
        if components is not None and self.decomposition is not None:
            wanted = components.permute(0, 2, 3, 1).flatten(0, 1).to(found.dtype)
            loss = loss + self.config.decomposition_weight * decomposition_error(found, wanted)
        return loss - self.config.pool_weight * like if self.config.pool_weight else loss


def sentences(tokenizer: Any, sentence: str = SENTENCE) -> list[list[int]]:
    """Token numbers of the prompt for every component, by a tokenizer of transformers, without marks of begin and end."""
    return [list(tokenizer(sentence.format(c), add_special_tokens=False)["input_ids"]) for c in COMPONENTS]


register()
