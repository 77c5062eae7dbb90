"""Batched sampling from a transformers model, each row with its own random draws.

Knows nothing of verl or Ray: a batch of requests with ready position ids goes in, tokens and log-probabilities come
out. A row's tokens depend on its own prompt, sampling settings and seed, not on the rows it shares the batch with.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from verl_care.shaping.annealing import temperature_factor

# The processor's outputs that the model's forward reads; rows are stacked along the first axis.
MODEL_INPUTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")

# A finished row costs a forward row until the batch is repacked; repacking copies the key-value cache.
_REPACK_SHARE = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How one row is sampled."""

    max_tokens: int
    """Most tokens to produce, at least 1."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = -1
    """Sample from the k most likely tokens; -1 or 0 for all."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches this, in (0, 1]."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that the response already has, as vLLM and OpenAI define it."""
    frequency_penalty: float = 0.0
    """Taken off that logit once for each time that it has it."""
    seed: int | None = None
    """Seed of the row's draws; None takes a fresh one."""
    first_draw: int = 0
    """Index of the row's first draw in the seed's stream, above 0 when a response is continued."""
    annealing: Mapping[str, float] | None = None
    """Schedule by which the temperature falls along the response, see `verl_care.shaping.annealing`."""
    ignore_eos: bool = False
    """Go on to `max_tokens` whatever is sampled."""
    stop_token_ids: tuple[int, ...] = ()
    """Ends the row besides the model's own end tokens."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to continue."""

    prompt_ids: list[int]
    """Tokens, vision placeholders expanded."""
    position_ids: torch.Tensor
    """(C, L) int64: C=1 for plain positions, C=4 for the text axis and the three of M-RoPE."""
    sampling: Sampling
    vision: dict[str, torch.Tensor] = field(default_factory=dict)
    """Processor outputs under the names in `MODEL_INPUTS`; empty for a text prompt."""
    prompt_key: Hashable = None
    """Requests with equal keys share one pass over the prompt; None shares with none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What one request produced."""

    token_ids: list[int]
    log_probs: list[float]
    """Log-probability of each token under softmax(logits / temperature) over the whole vocabulary, nothing banned or
    truncated: what the trainer's own forward pass computes. At temperature 0 the logits stand undivided."""
    stop_reason: str
    """"completed" after an end token, "length" at `max_tokens`."""


def draws(sampling: Sampling) -> torch.Tensor:
    """Return a row's uniform draws in [0, 1), (max_tokens,) float64; a seed gives the same stream at any length."""
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    stream = torch.rand(sampling.first_draw + sampling.max_tokens, generator=generator, dtype=torch.float64)
    return stream[sampling.first_draw :]


def penalties(tokens: Sequence[Sequence[int]], samplings: Sequence[Sampling], vocabulary: int) -> torch.Tensor | None:
    """What presence and frequency penalties take off the logits.

    Args:
        tokens: of each response so far.
        samplings: N settings.
        vocabulary: V.

    Returns:
        (N, V) float32; None where no row has a penalty.
    """
    if not any(s.presence_penalty or s.frequency_penalty for s in samplings):
        return None
    count_NV = torch.stack(
        [torch.bincount(torch.tensor(row, dtype=torch.long), minlength=vocabulary) for row in tokens]
    )
    presence, frequency = (
        torch.tensor([getattr(s, name) for s in samplings])[:, None]
        for name in ("presence_penalty", "frequency_penalty")
    )
    return presence * (count_NV > 0) + frequency * count_NV


def pick_tokens(
    logits: torch.Tensor,
    draw: torch.Tensor,
    samplings: Sequence[Sampling],
    banned_ids: Collection[int] = (),
    penalty: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one token a row by inverting the cumulative distribution at the row's draw.

    Args:
        logits: (N, V) float.
        draw: (N,) float64 in [0, 1).
        samplings: N settings.
        banned_ids: tokens that no row may take.
        penalty: (N, V), see `penalties`; it moves the choice, not the log-probabilities.
        factor: (N,), multiplies the temperature of the choice, not that of the log-probabilities.

    Returns:
        Tokens (N,) int64 and their log-probabilities (N,) float32, as `Completion.log_probs` defines them.
    """
    temperature = torch.tensor([s.temperature or 1.0 for s in samplings], dtype=torch.float32)
    scaled_NV = logits.float() / temperature[:, None]

    allowed_NV = scaled_NV.clone() if penalty is None else (logits.float() - penalty) / temperature[:, None]
    if factor is not None:
        allowed_NV /= factor[:, None]
    if banned_ids:
        allowed_NV[:, torch.tensor(sorted(banned_ids))] = -torch.inf
    greedy_N = allowed_NV.argmax(dim=-1)
    for row, sampling in enumerate(samplings):
        if 0 < sampling.top_k < allowed_NV.shape[-1]:
            floor = allowed_NV[row].topk(sampling.top_k).values[-1]
            allowed_NV[row, allowed_NV[row] < floor] = -torch.inf
        if sampling.top_p < 1:
            probs, order = allowed_NV[row].softmax(dim=-1).sort(descending=True, stable=True)
            beyond = probs.cumsum(dim=-1) - probs >= sampling.top_p
            allowed_NV[row, order[beyond]] = -torch.inf
    cdf_NV = allowed_NV.double().softmax(dim=-1).cumsum(dim=-1)
    # Stay below the total, so that rounding cannot select past the last token that has any probability.
    target_N = draw.clamp(max=1 - 1e-12) * cdf_NV[:, -1]
    sampled_N = torch.searchsorted(cdf_NV, target_N[:, None], right=True).squeeze(-1)

    is_greedy_N = torch.tensor([s.temperature == 0 for s in samplings])
    token_N = torch.where(is_greedy_N, greedy_N, sampled_N)
    # In float64: the trainer's float32 logsumexp is off by up to half a unit in the last place of the largest logit,
    # and the two should not differ by more than that.
    log_probs_NV = scaled_NV.double().log_softmax(dim=-1)
    return token_N, log_probs_NV.gather(-1, token_N[:, None]).squeeze(-1).float()


def _annealed(sampling: Sampling, num_tokens: int) -> float:
    return 1.0 if sampling.annealing is None else temperature_factor(num_tokens, sampling.annealing)


@torch.inference_mode()
def generate(
    model: torch.nn.Module,
    requests: Sequence[Request],
    *,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    banned_ids: Collection[int] = (),
) -> list[Completion]:
    """Continue a batch of prompts, left padded, with a key-value cache.

    Args:
        model: a transformers causal model (vision-language or text) in eval mode.
        requests: image, video and text rows may mix.
        eos_token_ids: end tokens.
        pad_token_id: fills the left of shorter prompts; never attended to.
        banned_ids: tokens never sampled, such as vision placeholders.

    Returns:
        One completion a request, in order.
    """
    if not requests:
        return []
    unique, group = _group_by_prompt(requests)
    logits, cache, mask = _prefill(model, [requests[i] for i in unique], pad_token_id)
    group_N = torch.tensor(group)
    cache.batch_select_indices(group_N.to(model.device))
    logits_NV, mask_NL = logits[group_N], mask[group_N]

    samplings = [request.sampling for request in requests]
    stop = [set(s.stop_token_ids) if s.ignore_eos else {*eos_token_ids, *s.stop_token_ids} for s in samplings]
    streams = [draws(sampling) for sampling in samplings]
    tokens: list[list[int]] = [[] for _ in requests]
    log_probs: list[list[float]] = [[] for _ in requests]
    stop_reason = ["length"] * len(requests)
    # After a prompt, every axis of the positions goes on from the prompt's last token, as when the whole sequence is
    # positioned at once.
    next_position_CN = torch.stack([request.position_ids[:, -1] + 1 for request in requests], dim=1)

    slots = list(range(len(requests)))  # request of each batch row
    running = [True] * len(slots)  # by batch row
    while True:
        draw = torch.stack(
            [
                streams[i][len(tokens[i])] if on else torch.tensor(0.0).double()
                for i, on in zip(slots, running, strict=True)
            ]
        )
        penalty = penalties([tokens[i] for i in slots], [samplings[i] for i in slots], logits_NV.shape[-1])
        factor = None
        if any(sampling.annealing is not None for sampling in samplings):
            factor = torch.tensor([_annealed(samplings[i], len(tokens[i])) for i in slots])
        token_N, log_prob_N = pick_tokens(logits_NV, draw, [samplings[i] for i in slots], banned_ids, penalty, factor)
        for row, i in enumerate(slots):
            if not running[row]:
                continue
            token = int(token_N[row])
            tokens[i].append(token)
            log_probs[i].append(float(log_prob_N[row]))
            if token in stop[i]:
                stop_reason[i] = "completed"
            running[row] = stop_reason[i] == "length" and len(tokens[i]) < samplings[i].max_tokens
        if not any(running):
            break
        if running.count(False) >= _REPACK_SHARE * len(slots):
            keep = torch.tensor([row for row, on in enumerate(running) if on])
            cache.batch_select_indices(keep.to(model.device))
            token_N, mask_NL, next_position_CN = token_N[keep], mask_NL[keep], next_position_CN[:, keep]
            slots = [i for i, on in zip(slots, running, strict=True) if on]
            running = [True] * len(slots)
        mask_NL = torch.cat([mask_NL, mask_NL.new_ones(len(slots), 1)], dim=1)
        logits_NV = _forward(model, token_N[:, None], mask_NL, next_position_CN[:, :, None], cache)
        next_position_CN = next_position_CN + 1

    return [
        Completion(token_ids=t, log_probs=p, stop_reason=r)
        for t, p, r in zip(tokens, log_probs, stop_reason, strict=True)
    ]


def _group_by_prompt(requests: Sequence[Request]) -> tuple[list[int], list[int]]:
    """Return the first request of each distinct prompt, and for every request the place of its prompt in that list."""
    unique: list[int] = []
    place: dict[Hashable, int] = {}
    group = []
    for i, request in enumerate(requests):
        key = ("alone", i) if request.prompt_key is None else ("shared", request.prompt_key)
        if key not in place:
            place[key] = len(unique)
            unique.append(i)
        group.append(place[key])
    return unique, group


def _prefill(model: torch.nn.Module, requests: Sequence[Request], pad_token_id: int):
    """Run the prompts; return last logits (N, V), the cache and the attention mask (N, L)."""
    from transformers import DynamicCache

    length = max(len(request.prompt_ids) for request in requests)
    axes = requests[0].position_ids.shape[0]
    ids_NL = torch.full((len(requests), length), pad_token_id, dtype=torch.long)
    mask_NL = torch.zeros((len(requests), length), dtype=torch.long)
    positions_CNL = torch.zeros((axes, len(requests), length), dtype=torch.long)
    for row, request in enumerate(requests):
        start = length - len(request.prompt_ids)
        ids_NL[row, start:] = torch.tensor(request.prompt_ids)
        mask_NL[row, start:] = 1
        positions_CNL[:, row, start:] = request.position_ids
    vision = {
        name: torch.cat([request.vision[name] for request in requests if name in request.vision])
        for name in MODEL_INPUTS
        if any(name in request.vision for request in requests)
    }
    cache = DynamicCache(config=model.config.get_text_config())
    return _forward(model, ids_NL, mask_NL, positions_CNL, cache, **vision), cache, mask_NL


def _forward(model, ids, mask, positions, cache, **vision) -> torch.Tensor:
    """Return the logits (N, V) after the last token, on the CPU; the cache grows by the tokens given."""
    output = model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=(positions[0] if positions.shape[0] == 1 else positions).to(model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **{name: tensor.to(model.device) for name, tensor in vision.items()},
    )
    return output.logits[:, -1].cpu()
