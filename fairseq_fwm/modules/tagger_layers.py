"""Layers of the formal-language models, wired and initialised as in arXiv 2310.16076.

Batch first: ``(N, T, D)``. No masks: every layer is causal and padding is on the right.
"""

import torch
from torch import Tensor, nn

from fairseq_fwm.mixers import Mixer, SelfReferentialMixer


class MixerLayer(nn.Module):
    """h + W_o mixer(W_i LN(h)); self-referential: LN(h) + W_o mixer(h), without a projection.

    Args:
        dim: D.
        heads: H, which must divide D.
        mixer: for heads of size D / H.
        dropout: of what is added.
    """

    def __init__(self, dim: int, heads: int, mixer: Mixer, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.mixer = heads, mixer
        self.norm = nn.LayerNorm(dim)
        self.projects = not isinstance(mixer, SelfReferentialMixer)
        if self.projects:
            self.in_proj = nn.Linear(dim, heads * mixer.projection_size, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(N, T, D)`` to the same."""
        normed = self.norm(h)
        x = self.in_proj(normed) if self.projects else h
        y, _ = self.mixer(x.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        added = self.dropout(self.out_proj(y.transpose(1, 2).flatten(2)))
        return (h if self.projects else normed) + added


class FeedForward(nn.Module):
    """h + W_2 relu(W_1 LN(h) + b_1) + b_2."""

    def __init__(self, dim: int, inner: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, inner),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(inner, dim),
            nn.Dropout(dropout),
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(N, T, D)`` to the same."""
        return h + self.layers(h)


class LSTM(nn.LSTM):
    """PyTorch's, of outputs alone."""

    def __init__(self, dim: int, hidden: int, layers: int) -> None:
        super().__init__(dim, hidden, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, T, D)`` to ``(N, T, hidden)``."""
        return super().forward(x)[0]


class ELSTM(nn.Module):
    """LSTM whose recurrence is elementwise (e-LSTM, Quasi-LSTM; arXiv 2310.16076).

    z_t = tanh(W_z x_t + w_z c_{t-1} + b_z), f_t = sigmoid(W_f x_t + w_f c_{t-1} + b_f),
    c_t = f_t c_{t-1} + (1 - f_t) z_t, o_t = sigmoid(W_o [x_t; c_t] + b_o), h_t = o_t c_t
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.inputs = nn.Linear(dim, 2 * hidden)
        self.recurrent = nn.Parameter(torch.empty(2 * hidden))
        self.output_gate = nn.Linear(dim + hidden, hidden)
        for parameter in (*self.inputs.parameters(), self.recurrent):
            nn.init.normal_(parameter, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, T, D)`` to ``(N, T, hidden)``."""
        w_z, w_f = self.recurrent.chunk(2)
        c, cells = x.new_zeros(x.shape[0], self.hidden), []
        z_x, f_x = (part.unbind(1) for part in self.inputs(x).chunk(2, -1))
        for z, f in zip(z_x, f_x, strict=True):
            forget = torch.sigmoid(f + w_f * c)
            c = torch.lerp(torch.tanh(z + w_z * c), c, forget)
            cells.append(c)
        cells = torch.stack(cells, 1)
        return self.output_gate(torch.cat((x, cells), -1)).sigmoid() * cells


class Transformer(nn.TransformerEncoder):
    """PyTorch's encoder layers, post-norm, with a causal mask and a last LayerNorm."""

    def __init__(self, dim: int, heads: int, inner: int, layers: int, dropout: float) -> None:
        layer = nn.TransformerEncoderLayer(dim, heads, inner, dropout, batch_first=True)
        super().__init__(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, T, D)`` to the same."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
        return super().forward(x, mask, is_causal=True)
