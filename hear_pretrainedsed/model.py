"""SEDModel: audio in, frames and scores out; the whole data flow."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hear_pretrainedsed.audio import check_audio, resample
from hear_pretrainedsed.decoding import Decoding
from hear_pretrainedsed.frames import FrameGrid
from hear_pretrainedsed.frontends import SAMPLE_RATE
from hear_pretrainedsed.heads import HEADS, NoHeadError
from hear_pretrainedsed.options import PRECISIONS, Layers, Options
from hear_pretrainedsed.registry import (
    BACKBONES,
    SEQUENCE_MODELS,
    Checkpoint,
    read_vocabulary,
    unknown,
)


class Step(NamedTuple):
    """One line of `SEDModel.trace`."""

    name: str
    shape: tuple[int, ...]
    hop_ms: float
    ms: float


class SEDModel(nn.Module):
    """Front end, backbone, frame grid, sequence model and head, one after the other.

    Attributes: `labels` (class names in the order of the head's outputs; None without a head, or
    where nobody here knows them), `clip_samples` (longest clip that a head sees at once if it
    pools tokens), `options`, `provenance` (checkpoint, file, sha256, what was left out, what it was
    trained from; set by `load_weights`), `decoding` (calibrated thresholds and medians, or None).
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        sequence_model: nn.Module | None = None,
        head: nn.Module | None = None,
        labels: tuple[str, ...] | None = None,
        clip_s: float | None = None,
        options: Options | None = None,
    ) -> None:
        super().__init__()
        with torch.device("cpu"):  # computed, never loaded: also when the rest is on "meta"
            self.frontend = backbone.build_frontend()
        self.backbone = backbone
        self.grid = FrameGrid(
            token_span_samples=getattr(backbone, "token_span_samples", None),
            first_token_samples=getattr(backbone, "first_token_samples", None),
        )
        self.clip_samples = round(clip_s * SAMPLE_RATE) if clip_s else self.grid.spec_samples
        self.sequence_model = sequence_model or nn.Identity()
        self.head, self.labels = head, labels
        self.options = options or Options()
        self.provenance: dict[str, object] = {}
        self.decoding: Decoding | None = None
        self._parts: tuple[object, nn.Module, nn.Module] | None = None

    # ---- one window: the data flow ----

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (n, 160000) at 16 kHz -> frames (n, 250, dim); differentiable, float32."""
        spec = self.frontend(windows)
        tokens = self.backbone(spec)
        frames = self.grid.to_frames(tokens)
        return self.sequence_model(frames)

    def fast_frames(self, windows: Tensor) -> Tensor:
        """`forward` for inference: by `inference_parts`, the backbone some windows at a time."""
        backbone, sequence_model = self.inference_parts()
        parts = [
            self.grid.to_frames(backbone(self.frontend(part).to(self.precision)))
            for part in windows.split(self.batch_size)
        ]
        return sequence_model(torch.cat(parts)).float()

    def layer_frames(self, windows: Tensor, layers: Sequence[int]) -> Tensor:
        """Windows (n, 160000) -> the blocks' outputs side by side (n, 250, sum of dims)."""
        backbone, _ = self.inference_parts()
        tokens = backbone.block_tokens(self.frontend(windows).to(self.precision), layers)
        return torch.cat([self.grid.to_frames(x).float() for x in tokens], dim=2)

    def inference_parts(self) -> tuple[nn.Module, nn.Module]:
        """Backbone and sequence model as inference runs them: folded, in `options.precision`.

        Made when first needed, and again when a weight has changed. They are no submodules: what
        is saved and trained stays float32 and whole.
        """
        state = tuple(
            (x.data_ptr(), 0 if x.is_inference() else x._version, x.device)
            for part in (self.backbone, self.sequence_model)
            for x in chain(part.parameters(), part.buffers())
        )
        if self._parts is None or self._parts[0] != state:
            sequence_model = self.sequence_model
            if self.precision != torch.float32:
                sequence_model = copy.deepcopy(sequence_model).to(self.precision)
            self._parts = (state, self.backbone.for_inference(self.precision), sequence_model)
        return self._parts[1:]

    def mel_frames(self, windows: Tensor) -> Tensor:
        """Windows (n, 160000) -> spec averaged over each frame (n, 250, mels)."""
        parts = self.frontend.parts(self.frontend(windows))
        return torch.cat([self.grid.pool_spec(*part) for part in parts], dim=2)

    # ---- audio of any length ----

    def frames(self, audio: Tensor, layer: Layers = None) -> Tensor:
        """Audio (batch, samples), any length -> frames (batch, frames, dim), without gradients.

        With `layer` the output of that block, before final norm and sequence model: an index
        (negative ones count from the last), several of them (side by side in dim), or "all":
        (batch, blocks, frames, dim), for a learned sum.
        """
        if layer is None:
            return self._over_windows(audio, self.fast_frames, together=True)
        layers = self.layer_indices(layer)
        if layer == "all" and len(set(self.backbone.block_dims)) > 1:
            raise ValueError(
                'layer="all" stacks blocks of one width, and here they are '
                f"{self.backbone.block_dims}: give a list of blocks instead"
            )
        frames = self._over_windows(audio, lambda windows: self.layer_frames(windows, layers))
        if layer != "all":
            return frames
        return frames.unflatten(2, (len(layers), -1)).transpose(1, 2)

    def logits(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> logits (batch, frames, classes)."""
        return self._head("logits")(self.frames(audio))

    def scores(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> scores (batch, frames, classes) in 0..1."""
        out = self._head()(self.frames(audio))
        return out.sigmoid() if self.head.emits == "logits" else out

    def weak_logits(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> clip logits (batch, classes)."""
        return self._head("logits").clip(self._pooled(audio))

    def weak_scores(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples) -> clip scores (batch, classes) in 0..1."""
        out = self._head().clip(self._pooled(audio))
        return out.sigmoid() if self.head.emits == "logits" else out

    def _pooled(self, audio: Tensor) -> Tensor:
        return self.tokens(audio) if self.pools_tokens else self.frames(audio)

    @property
    def pools_tokens(self) -> bool:
        """Whether clip scores are of tokens: the head asks for them, and was trained on them."""
        return self.head.pools == "tokens" and isinstance(self.sequence_model, nn.Identity)

    @torch.no_grad()
    def tokens(self, audio: Tensor) -> Tensor:
        """Audio (batch, samples), any length -> tokens (batch, tokens, dim), steps as they come.

        The clip is seen in pieces as long as in training (`clip_samples`), and the front end fills
        up the last by its own rule. Steps in that filling are dropped, but not those of the first
        piece: there the original pools over them as well.
        """
        audio = self._prepare(audio)
        backbone, _ = self.inference_parts()
        pieces = []
        for piece in audio.split(self.clip_samples, dim=1):
            specs = (
                self.frontend.clip(part, self.clip_samples) for part in piece.split(self.batch_size)
            )
            tokens = torch.cat([backbone(spec.to(self.precision)).float() for spec in specs])
            n_inside = -(-piece.shape[1] * tokens.shape[1] // self.clip_samples)
            pieces.append(tokens[:, :n_inside] if pieces else tokens)
        return torch.cat(pieces, dim=1)

    def embeddings(self, audio: Tensor) -> Tensor:
        """HEAR's embeddings under `options`: (batch, samples) -> (batch, frames, dim)."""
        layer = self.options.layer
        layers = None if layer is None else self.layer_indices(layer)

        def compute(windows: Tensor) -> Tensor:
            frames = self.layer_frames(windows, layers) if layers else self.fast_frames(windows)
            mel = [self.mel_frames(windows)] if self.options.concat_mel else []
            return torch.cat([frames, *mel], dim=2)

        return self._over_windows(audio, compute, together=not layers)

    @torch.no_grad()
    def _over_windows(
        self, audio: Tensor, compute: Callable[[Tensor], Tensor], *, together: bool = False
    ) -> Tensor:
        """Split audio, compute (n, 160000) -> (n, 250, dim) chunk by chunk, join.

        `together`: chunks are as large as the sequence model likes them.
        """
        audio = self._prepare(audio)
        many = getattr(self.sequence_model, "n_together", 1) if together else 1
        size = self.batch_size * many
        out: Tensor | None = None
        for windows, chunk in self.grid.windows(audio, self.options.windowing, size):
            frames = compute(windows)
            if out is None:
                shape = (len(audio), self.grid.n_frames(audio.shape[1]), frames.shape[2])
                out = frames.new_empty(shape)
            self.grid.join(frames, chunk, out)
        assert out is not None
        return out

    def _prepare(self, audio: Tensor) -> Tensor:
        """Check audio, bring it to the model's device and to 16 kHz."""
        check_audio(audio)
        if self.options.sample_rate != SAMPLE_RATE:
            audio = resample(audio, self.options.sample_rate, SAMPLE_RATE)
        return audio.to(self.device, torch.float32)

    def _head(self, wanted: str = "scores") -> nn.Module:
        """The head, or an error that says what to do without one."""
        name = self.provenance.get("checkpoint", "this model")
        if self.head is None:
            raise NoHeadError(
                f"{name} has no trained head, so it has no {wanted}: train one with `probe` "
                "(backbone frozen) or `finetune`, or take a strong checkpoint"
            )
        if wanted == "logits" and self.head.emits != "logits":
            raise NoHeadError(f"the head of {name} emits {self.head.emits}: it has no logits")
        return self.head

    # ---- facts ----

    def layer_indices(self, layer: Layers) -> list[int]:
        """`layer` as block indices 0..n_blocks - 1; `ValueError` on anything else."""
        n = self.backbone.n_blocks
        if layer == "all":
            return list(range(n))
        given = [layer] if isinstance(layer, int) else layer
        fits = (
            isinstance(given, list | tuple)
            and given
            and all(isinstance(i, int) and not isinstance(i, bool) and -n <= i < n for i in given)
        )
        if not fits:
            raise ValueError(
                f"layer is {layer!r}; allowed: whole numbers from {-n} to {n - 1}, "
                'a list of them, or "all"'
            )
        return [i % n for i in given]

    @property
    def sample_rate(self) -> int:
        """Rate in Hz that audio is expected at."""
        return self.options.sample_rate

    @property
    def frame_dim(self) -> int:
        """Width of `frames(audio)`."""
        return getattr(self.sequence_model, "out_dim", self.backbone.embed_dim)

    @property
    def timestamp_embedding_size(self) -> int:
        """Width of HEAR's timestamp embeddings under `options`."""
        layer = self.options.layer
        size = self.frame_dim
        if layer is not None:
            size = sum(self.backbone.block_dims[i] for i in self.layer_indices(layer))
        return size + (self.frontend.n_mels if self.options.concat_mel else 0)

    @property
    def scene_embedding_size(self) -> int:
        """Width of HEAR's scene embeddings: their mean over frames."""
        return self.timestamp_embedding_size

    @property
    def n_parameters(self) -> int:
        """Parameters, each once."""
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def batch_size(self) -> int:
        """Windows in the backbone at a time."""
        return self.options.batch_size or (32 if self.device.type == "cuda" else 4)

    def n_windows(self, n_samples: int) -> int:
        """Windows that audio of so many samples is cut into."""
        return len(self.grid.plan(n_samples, self.options.windowing))

    @property
    def precision(self) -> torch.dtype:
        """What backbone and sequence model compute in at inference."""
        return PRECISIONS[self.options.precision]

    @torch.no_grad()
    def trace(self, audio: Tensor) -> list[Step]:
        """The journey of audio (batch, samples) through its first window, one `Step` a stage."""
        steps: list[Step] = []
        audio = self._prepare(audio)
        spans = {"spec": self.grid.spec_samples, "tokens": self.grid.span_samples}

        def step(name: str, function: Callable[[Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
            start = time.perf_counter()
            y = function(x)
            ms = 1000 * (time.perf_counter() - start)
            samples = spans.get(name, self.grid.window_samples)
            hop_ms = 1000 * samples / SAMPLE_RATE / y.shape[axis]
            steps.append(Step(name, tuple(y.shape), hop_ms, ms))
            return y

        windows, _ = next(self.grid.windows(audio, self.options.windowing, len(audio)))
        x = step("audio", lambda x: x, windows, 1)
        x = step("spec", self.frontend, x, 3)
        backbone, sequence_model = self.inference_parts()
        x = step("tokens", backbone, x.to(self.precision), 1)
        x = step("frames", self.grid.to_frames, x, 1)
        if not isinstance(self.sequence_model, nn.Identity):
            x = step("frames", sequence_model, x, 1)
        if self.head is not None:
            step(self.head.emits, self.head, x.float(), 1)
        return steps


def build_model(
    backbone: str,
    *,
    sequence_model: tuple[str, int] | tuple[str, int, int] | None = None,
    head: str | None = None,
    labels: Sequence[str] | None = None,
    n_classes: int | None = None,
    clip_s: float | None = None,
    options: Options | None = None,
) -> SEDModel:
    """A model at random weights, in eval mode: no file is read and nothing is printed.

    `sequence_model` is (name, dim), or (name, dim, layers); `head` is a key of `HEADS` and needs
    `labels`, or `n_classes` where their names are not known; `clip_s` is the longest clip such a
    head sees at once if it pools tokens (None: what the spec of a window spans).
    """
    if backbone not in BACKBONES:
        raise ValueError(unknown("backbone", backbone, BACKBONES))
    body = BACKBONES[backbone]()
    sequence, dim = None, body.embed_dim
    if sequence_model is not None:
        name, *sizes = sequence_model
        if name not in SEQUENCE_MODELS:
            raise ValueError(unknown("sequence model", name, SEQUENCE_MODELS))
        sequence = SEQUENCE_MODELS[name](dim, *sizes)
        dim = sequence.out_dim
    n_classes = len(labels) if labels else n_classes
    if (head is None) != (n_classes is None):
        raise ValueError("a head needs labels, and labels need a head")
    if head is not None and head not in HEADS:
        raise ValueError(unknown("head", head, HEADS))
    top = HEADS[head](dim, n_classes) if head else None
    model = SEDModel(
        body,
        sequence_model=sequence,
        head=top,
        labels=tuple(labels) if labels else None,
        clip_s=clip_s,
        options=options,
    )
    return model.eval()


def build_checkpoint(checkpoint: Checkpoint, options: Options | None = None) -> SEDModel:
    """The network of a checkpoint, at random weights."""
    labels = checkpoint.classes
    if options is not None and options.vocabulary is not None:
        labels = read_vocabulary(options.vocabulary, checkpoint)
    return build_model(
        checkpoint.backbone,
        sequence_model=checkpoint.sequence_model,
        head=checkpoint.head if labels or checkpoint.n_classes else None,
        labels=labels,
        n_classes=checkpoint.n_classes,
        clip_s=checkpoint.clip_s,
        options=options,
    )
