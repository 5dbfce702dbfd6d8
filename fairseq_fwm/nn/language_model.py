"""A trained language model without fairseq."""

from torch import Tensor, nn

from fairseq_fwm.nn.config import StackConfig
from fairseq_fwm.nn.stack import Stack, StackState


class LanguageModel(nn.Module):
    """``fwm_transformer_lm`` for running it: tokens in, logits out.

    Args:
        decoder: what it is.
        eos: index of the end of sentence, with which a text begins.

    >>> import torch
    >>> from fairseq_fwm.mixers import FastWeightConfig
    >>> cfg = StackConfig(
    ...     words=50, pad=1, dim=16, embed_dim=16, layers=2, heads=2, ff_dim=32, causal=True,
    ...     self_attention=FastWeightConfig("delta", "dpfp"), output="linear", output_dim=16,
    ... )
    >>> model = LanguageModel(cfg).eval()
    >>> tokens = torch.randint(4, 50, (2, 7))
    >>> model(tokens).shape
    torch.Size([2, 7, 50])

    In segments, and token by token; with fast weights each step takes the same time:

    >>> logits, state = model(tokens[:, :6], return_state=True)
    >>> last, state = model.step(tokens[:, 6], state)
    >>> torch.allclose(last, model(tokens)[:, 6], atol=1e-5)
    True
    """

    def __init__(self, decoder: StackConfig, eos: int = 2) -> None:
        super().__init__()
        self.decoder, self.eos = Stack(decoder), eos

    def forward(
        self, tokens: Tensor, state: StackState | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, StackState]:
        """Return the logits of every next token.

        Args:
            tokens: ``(N, T)``; padding, if any, behind the text.
            state: go on from it.
            return_state: return the state after the last token, too.

        Returns:
            Logits ``(N, T, words)``, log-probabilities if the softmax is adaptive; with
            ``return_state`` that and the state.

        Raises:
            ValueError: a state where positions are counted from the end.
        """
        x, state = self.decoder(tokens, state, return_state)
        logits = self.decoder.logits(x)
        return (logits, state) if return_state else logits

    def step(self, tokens: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState]:
        """Process one token of each text: ``(N,)`` -> logits ``(N, words)`` and the new state.

        Args:
            tokens: ``(N,)``.
            state: of the texts so far, which is not changed; ``None`` before the first token.
        """
        logits, state = self(tokens.unsqueeze(1), state, return_state=True)
        return logits.squeeze(1), state
