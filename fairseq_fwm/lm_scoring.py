"""Score texts with a language model as published, and continue them.

Three ways to give every token its context (arXiv 2102.11174, Sec. 6.3):

- ``sliding``: a window of ``length`` tokens, moved by one token; only the last position counts,
  except in the first window. One forward pass of ``length`` tokens for every token.
- ``segments``: windows side by side, each from an empty context.
- ``streaming``: segments that carry the state along; linear in the text, nothing is forgotten but
  by the model itself.

A text is scored from its first token on, which follows an end of sentence.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fairseq_fwm.modules.stream import Stream

Progress = Callable[[int], object]


def score_sliding(
    model: nn.Module, text: Tensor, length: int, *, eos: int, batch_size: int = 16,
    progress: Progress = lambda done: None,
) -> Tensor:  # fmt: skip
    """Return the log-probability of every token, given the ``length`` tokens before it.

    Args:
        model: a fairseq language model in evaluation mode.
        text: ``(N,)`` tokens.
        length: of the window, L.
        eos: what comes before the text.
        batch_size: windows at a time.
        progress: called with the number of tokens just scored.

    Returns:
        ``(N,)`` log-probabilities, natural logarithm.
    """
    inputs, found = shifted(text, eos), room_for(text)
    first = min(length, len(text))
    found[:first] = score(model, inputs[None, :first], text[None, :first])[0]
    progress(first)
    windows = inputs.unfold(0, first, 1)
    for start in range(first, len(text), batch_size):
        target = text[start : start + batch_size, None]
        window = windows[start - first + 1 :][: len(target)]
        found[start : start + len(target)] = score(model, window, target)[:, 0]
        progress(len(target))
    return found


def score_segments(
    model: nn.Module, text: Tensor, length: int, *, eos: int, batch_size: int = 16,
    progress: Progress = lambda done: None,
) -> Tensor:  # fmt: skip
    """Return the log-probability of every token, given those before it in its segment.

    Args:
        model, text, eos, batch_size, progress: as in :func:`score_sliding`.
        length: of a segment.

    Returns:
        ``(N,)`` log-probabilities.
    """
    inputs, found, cut = shifted(text, eos), room_for(text), len(text) // length * length
    for first, last, width in ((0, cut, length), (cut, len(text), len(text) - cut)):
        if first == last:
            continue
        parts = (x[first:last].view(-1, width).split(batch_size) for x in (inputs, text, found))
        for source, target, place in zip(*parts, strict=True):
            place.copy_(score(model, source, target))
            progress(target.numel())
    return found


def score_streaming(
    model: nn.Module, text: Tensor, length: int, *, eos: int, stream: Stream | None = None,
    progress: Progress = lambda done: None,
) -> Tensor:  # fmt: skip
    """Return the log-probability of every token, given all before it as far as a state holds them.

    Args:
        model, text, eos, progress: as in :func:`score_sliding`.
        length: of the segments; where the state is the whole context, it changes nothing but the
            speed.
        stream: go on from these states, with ``eos`` the last token before the text.

    Returns:
        ``(N,)`` log-probabilities.

    Raises:
        ValueError: if the model carries no state, with the reason.
    """
    stream = Stream.empty() if stream is None else stream
    found = room_for(text)
    parts = (x.split(length) for x in (shifted(text, eos), text, found))
    for source, target, place in zip(*parts, strict=True):
        place.copy_(score(model, source[None], target[None], stream=stream)[0])
        progress(len(target))
    return found


def shifted(text: Tensor, eos: int) -> Tensor:
    """Return what a model reads to predict a text: the same, one token later, after ``eos``."""
    return torch.cat((text.new_tensor([eos]), text[:-1]))


def room_for(text: Tensor) -> Tensor:
    """Return where the log-probabilities of a text go.

    Kept one by one until the end, small results between the large buffers of every segment would
    fragment the heap: 16,384 tokens in segments of 256 took 5 MB in most processes and 65 MB in
    some.
    """
    return torch.empty(len(text), device=text.device)


@torch.no_grad()
def score(
    model: nn.Module, source: Tensor, target: Tensor, *, stream: Stream | None = None
) -> Tensor:
    """Return log-probabilities of targets.

    Args:
        model: a fairseq language model.
        source: ``(B, T)`` tokens.
        target: ``(B, U)``: what follows the last U of them.
        stream: see :class:`fairseq_fwm.modules.stream.Stream`.

    Returns:
        ``(B, U)``.
    """
    options = {} if stream is None else {"stream": stream}
    features, _ = model.decoder(source, features_only=True, **options)
    features = features[:, -target.shape[1] :]
    softmax = getattr(model.decoder, "adaptive_softmax", None)
    if softmax is None:
        scores = model.decoder.output_layer(features).float()
        return scores.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return _adaptive(softmax, features, target).view(target.shape)


def _adaptive(softmax: nn.Module, features: Tensor, target: Tensor) -> Tensor:
    """Return log-probabilities of the targets alone; those of all words would be (B, T, words)."""
    flat = target.flatten()
    scores, targets = softmax(features, flat)

    def log_prob(part: int) -> Tensor:
        rows = scores[part].float().log_softmax(-1)
        return rows.gather(-1, targets[part].unsqueeze(-1)).squeeze(-1)

    found = log_prob(0)
    for part in range(1, len(scores)):
        if scores[part] is not None:
            inside = (flat >= softmax.cutoff[part - 1]) & (flat < softmax.cutoff[part])
            found[inside] += log_prob(part)
    return found


@torch.no_grad()
def continue_text(
    model: nn.Module,
    text: Tensor,
    *,
    eos: int,
    window: int,
    temperature: float = 1.0,
    top_k: int = 0,
    forbidden: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield one sampled token after the other, for ever.

    A model that carries a state needs the same time for every token; any other reads the last
    ``window`` tokens again each time.

    Args:
        model: a fairseq language model in evaluation mode.
        text: ``(N,)`` tokens to continue; may be empty.
        eos: what comes before the text.
        window: see above.
        temperature: 0 takes the likeliest token.
        top_k: sample among so many of the likeliest; 0 among all.
        forbidden: tokens never to sample.
        generator: random numbers.
    """
    carries = can_stream(model)
    stream = Stream.empty()
    context = torch.cat((text.new_tensor([eos]), text))
    unread = context
    while True:
        source, options = (unread, {"stream": stream}) if carries else (context[-window:], {})
        features, _ = model.decoder(source[None], features_only=True, **options)
        last = (model.decoder.output_layer(features[:, -1:]), None)
        probs = model.get_normalized_probs(last, log_probs=True)[0, -1].float()
        probs[list(forbidden)] = -torch.inf
        if top_k:
            probs[probs < probs.topk(min(top_k, len(probs))).values[-1]] = -torch.inf
        if temperature == 0:
            token = probs.argmax().view(1)
        else:
            token = torch.multinomial((probs / temperature).softmax(-1), 1, generator=generator)
        yield int(token)
        unread = token
        if not carries:
            context = torch.cat((context[-window:], token))


def can_stream(model: nn.Module) -> bool:
    """Return whether a model carries a state from segment to segment."""
    why_not = getattr(model.decoder, "why_no_stream", None)
    return why_not is not None and why_not() is None


@torch.no_grad()
def state_per_layer(model: nn.Module, length: int, eos: int) -> int:
    """Return how many numbers a layer keeps of one text of ``length`` tokens.

    Those of the carried state, else keys and values of the window.
    """
    if can_stream(model):
        stream = Stream.empty()
        device = next(model.parameters()).device
        model.decoder(torch.full((1, length), eos, device=device), stream=stream)
        return max(stream.numbers_per_layer)
    attention = model.decoder.layers[0].self_attn
    mixer = getattr(attention, "mixer", None)
    if mixer is None:
        return 2 * length * attention.embed_dim
    state = mixer.init_state(1, attention.num_heads, device=torch.device("cpu"))
    return sum(x.numel() for x in state if x is not None)
