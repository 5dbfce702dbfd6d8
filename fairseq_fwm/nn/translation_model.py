"""A trained translation model without fairseq."""

import torch
from torch import Tensor, nn

from fairseq_fwm.nn.config import StackConfig
from fairseq_fwm.nn.stack import Stack, StackState, greedy, padding_mask


class TranslationModel(nn.Module):
    """``fwm_transformer`` for running it.

    Args:
        encoder: what reads the source.
        decoder: what writes the target.
        eos: index of the end of sentence, with which a translation begins, too.
    """

    def __init__(self, encoder: StackConfig, decoder: StackConfig, eos: int = 2) -> None:
        super().__init__()
        self.encoder, self.decoder, self.eos = Stack(encoder), Stack(decoder), eos

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Return the logits of every next target token.

        Args:
            source: ``(N, S)``, each sentence with its end, padded on either side.
            target_in: ``(N, T)``, beginning with the end of sentence, padded behind.

        Returns:
            Logits ``(N, T, words)``.
        """
        x, _ = self.decoder(target_in, self.start(source))
        return self.decoder.logits(x)

    def start(self, source: Tensor) -> StackState:
        """Read sources; return the state before the first target token.

        Args:
            source: ``(N, S)``, see :meth:`forward`.
        """
        x, _ = self.encoder(source)
        return self.decoder.write_source(x, padding_mask(source, self.encoder.cfg.pad))

    def step(self, tokens: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """Process one target token of each sentence.

        Args:
            tokens: ``(N,)``.
            state: what :meth:`start` or the last step returned; not changed.

        Returns:
            Logits ``(N, words)`` and the new state.
        """
        x, state = self.decoder(tokens.unsqueeze(1), state, return_state=True)
        return self.decoder.logits(x).squeeze(1), state

    @torch.no_grad()
    def translate(self, source: Tensor, max_length: int = 200) -> list[list[int]]:
        """Translate by taking the likeliest token, again and again.

        Args:
            source: ``(N, S)``, see :meth:`forward`.
            max_length: longest translation, the end of sentence not counted.

        Returns:
            Tokens of each translation, without the end of sentence.
        """
        state, pad = self.start(source), self.decoder.cfg.pad
        tokens = source.new_full((len(source),), self.eos)
        done = torch.zeros_like(tokens, dtype=torch.bool)
        steps = []
        while len(steps) < max_length and not bool(done.all()):
            logits, state = self.step(tokens, state)
            # As fairseq: no padding, and no empty translation.
            tokens = greedy(logits, [pad] if steps else [pad, self.eos])
            done = done | tokens.eq(self.eos)
            steps.append(torch.where(done, pad, tokens))
        found = torch.stack(steps, 1) if steps else source.new_empty(len(source), 0)
        return [[t for t in row if t != pad] for row in found.tolist()]
