"""What every backbone has in common."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from hear_pretrainedsed.frontends import FrontEnd


class Backbone(nn.Module):
    """spec (batch, 1, mels, spec_frames) of one 10 s window -> tokens (batch, tokens, dim).

    A backbone is `embed`, then a row of blocks, then `finish`; `readout` brings what a block emits
    into (batch, tokens, dim). Parameters are named as in the published file below its prefix, so
    `key_map` lists only what other files call differently.
    """

    #: prefixes of the parameters in released files, the release's own first
    prefixes: ClassVar[tuple[str, ...]]
    #: what stands before `strong_head.`, `weak_head.` and `seq_model.` in the release's files
    release_root: ClassVar[str] = ""
    #: what the release's files call the two parts of a head, for frames and for the clip
    head_names: ClassVar[tuple[str, str]] = ("strong_head.", "weak_head.")
    #: prefix of the parameters in the reference data; the rule-made weights depend on it
    reference_prefix: ClassVar[str]
    #: (pattern, replacement) pairs for `re.sub`: names in a file, below the prefix -> names here
    key_map: ClassVar[tuple[tuple[str, str], ...]] = ()
    #: whole names that a released file may hold and that nothing here uses (full-match patterns)
    unused_keys: ClassVar[tuple[str, ...]] = ()
    #: prefixes (patterns) under which files of the backbone's own authors hold it; such files also
    #: hold decoders, projectors and classifiers, which are left out and reported
    upstream_prefixes: ClassVar[tuple[str, ...]] = ()

    #: what does not fit audio in a file of the same network trained on images, whose names are
    #: those here (full-match patterns); empty: there is no such file
    image_skips: ClassVar[tuple[str, ...]] = ()
    #: whether it was trained on longer clips than a window, each seen at once
    any_length: ClassVar[bool] = False
    #: what the tokens of one window span, in samples, where that is not the window; else None
    token_span_samples: ClassVar[int | None] = None
    #: centre of the first token, in samples; None: half a step (read where there is a span)
    first_token_samples: ClassVar[int | None] = None

    embed_dim: int

    @staticmethod
    def build_frontend() -> FrontEnd:
        """The front end that this backbone was trained with."""
        raise NotImplementedError

    @property
    def blocks_(self) -> Iterable[nn.Module]:
        """The blocks, first to last; `layer=` counts them."""
        raise NotImplementedError

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return sum(1 for _ in self.blocks_)

    @property
    def block_dims(self) -> list[int]:
        """Width of what `readout` makes of each block's output."""
        return [self.embed_dim] * self.n_blocks

    def embed(self, spec: Tensor) -> Tensor:
        """spec -> input of the first block."""
        raise NotImplementedError

    def run(self, spec: Tensor) -> Iterator[Tensor]:
        """Yield what each block emits, in order."""
        x = self.embed(spec)
        for block in self.blocks_:
            x = block(x)
            yield x

    def finish(self, x: Tensor) -> Tensor:
        """Last block's output -> normalised output, before `readout`."""
        return x

    def readout(self, x: Tensor) -> Tensor:
        """A block's output -> tokens (batch, tokens, dim)."""
        return x

    def forward(self, spec: Tensor) -> Tensor:
        """spec (batch, 1, mels, spec_frames) -> tokens (batch, tokens, dim)."""
        last = spec
        for emitted in self.run(spec):
            last = emitted
        return self.readout(self.finish(last))

    def block_tokens(self, spec: Tensor, layers: Iterable[int]) -> list[Tensor]:
        """Tokens of the named blocks (0 = first), as the block emits them, in the order asked."""
        wanted = list(layers)
        found: dict[int, Tensor] = {}
        for i, x in enumerate(self.run(spec)):
            if i in wanted:
                found[i] = self.readout(x)
            if i == max(wanted):
                break
        return [found[i] for i in wanted]

    def for_inference(self, dtype: torch.dtype) -> Backbone:
        """This backbone in `dtype`, for inference only: itself, or a copy that is faster."""
        return self if dtype == torch.float32 else copy.deepcopy(self).to(dtype)

    def layer_of(self, name: str) -> int:
        """Block index that a parameter belongs to: what comes before the blocks counts as 0.

        Layer-wise learning-rate decay multiplies by decay ** (n_blocks - layer_of(name)).
        """
        raise NotImplementedError

    def _layer_by_pattern(self, name: str, block: str, last: str) -> int:
        """`layer_of` for names that hold their block's number, `last` matching the final norm."""
        if name not in dict(self.named_parameters()):
            raise ValueError(f"{type(self).__name__} has no parameter {name!r}")
        if found := re.match(block, name):
            return int(found[1])
        return self.n_blocks - 1 if re.match(last, name) else 0

    @classmethod
    def rename(cls, name: str) -> str:
        """Name in a published file, below its prefix -> name here."""
        for pattern, replacement in cls.key_map:
            name = re.sub(pattern, replacement, name)
        return name
