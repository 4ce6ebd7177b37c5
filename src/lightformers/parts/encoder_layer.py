"""The post-norm layer of the first transformer, which forecasters stack."""

from __future__ import annotations

from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.ffn.plain import activation_of
from lightformers.parts.mixers.attention import Attention


class EncoderLayer(nn.Module):
    """x = LN1(x + attention(x)), then x = LN2(x + down(act(up(x)))) (Vaswani et al., 2017, arXiv 1706.03762).

    (batch, n, width) -> the same. heads: of attention, each of head_size (None: width / heads). hidden: width between up
    and down. causal: a token sees itself and those before it. window: as in `Attention`; 1 leaves every token alone.
    mask: (batch, n), 0 at padding. dropout: of attention's probabilities, of what act gives, and of what either half adds, in training.
    All linear layers have biases and start as torch starts them. Raises UserError for sizes that do not fit.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        head_size: int | None = None,
        activation: str = "gelu",
        dropout: float = 0.0,
        causal: bool = False,
        window: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if min(width, hidden) < 1:
            raise UserError(f"a layer needs positive widths, not {width} and {hidden}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is a share in [0, 1), not {dropout}")
        self.attention = Attention(
            width, heads, head_size=head_size, rotary=False, window=window, bias=True, causal=causal, dropout=dropout
        )  # fmt: skip
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation, self.dropout = activation_of(activation), dropout
        for module in self.attention.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.attention_norm(x + self._dropped(self.attention(x, mask)))
        y = self.down(self._dropped(self.activation(self.up(x))))
        return self.ffn_norm(x + self._dropped(y))

    def _dropped(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x
