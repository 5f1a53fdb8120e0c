"""The character language model on paper: a small GPT, the text that it is trained on, what it costs."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from search.checks import Number, Whole, check_whole
from search.proxies.hugging_face import check_data_set, check_part
from search.proxies.transformer import MAX_POSITIONS, TransformerSettings

CHAR_VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))
"""The 96 characters of the papers' character language model: newline and printable ASCII (2410.02117, appendix)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StdlibCorpus:
    """The source files of the Python standard library: real text that is on every machine that runs this."""

    kind: Literal["stdlib"] = "stdlib"

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCorpus:
    """A text file of the user's own, below the directory that the operator allows (``EINSEARCH_CORPORA_DIR``)."""

    path: str
    kind: Literal["file"] = "file"

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCorpus:
    """The texts in one field of a data set of Hugging Face, by its name: all of those of a split, or the first
    ``max_characters``. A worker looks for it, when it is first needed there.

    Raises:
        FieldError: a name could be something else than one, or ``max_characters`` is out of range.
    """

    name: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    max_characters: Whole | None = None
    kind: Literal["hugging_face"] = "hugging_face"

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_data_set(self.name)
        if self.config is not None:
            check_part("config", self.config)
        check_part("split", self.split)
        check_part("field", self.field)
        if self.max_characters is not None:
            check_whole("max_characters", self.max_characters, 1, 10**13)


Corpus = Annotated[StdlibCorpus | FileCorpus | HubCorpus, Discriminator("kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class CharLM(TransformerSettings):
    """A small GPT on characters (2410.02117, section 5). See ``TransformerSettings`` and ``ProxySettings``."""

    kind: Literal["char_lm"] = "char_lm"
    dense_width: Whole = 24
    depth: Whole = 2
    num_heads: Whole = 4
    context: Whole = 64
    batch_size: Whole = 8
    train_flops: Number = 1e11
    base_width: Whole = 32
    input_lr_mult: Number = 4.0
    """1 is too slow for tables whose rows see a gradient only when their character occurs (held-out loss 2.14 at 1, 2.02
    at 4, 2.03 at 8; 1e11 FLOPs)."""
    corpus: Corpus = field(default_factory=StdlibCorpus)

    SHIPPED_LR: ClassVar[float] = 5e-3

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        TransformerSettings.__post_init__(self)
        check_whole("context", self.context, 2, MAX_POSITIONS)

    @property
    def vocabulary_size(self) -> int:
        """That of the papers."""
        return len(CHAR_VOCABULARY)

    @property
    def num_positions(self) -> int:
        """The context."""
        return self.context
