"""Images on paper: which data sets there are, and what their images look like."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from einlayers.errors import FieldError
from search.checks import Whole, check_whole
from search.proxies.base import NAMED_BY_KIND
from search.proxies.hugging_face import check_data_set, check_part


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """The 1,797 handwritten digits that come with scikit-learn: 8 x 8 pixels of 17 grey levels, ten classes."""

    kind: Literal["digits"] = "digits"

    size: ClassVar[int] = 8
    channels: ClassVar[int] = 1
    levels: ClassVar[int] = 17
    num_classes: ClassVar[int] = 10

    __pydantic_config__: ClassVar = NAMED_BY_KIND


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """Files of images of 32 x 32 pixels in three colours, in the directory ``path`` below the one that the operator allows
    (``EINSEARCH_CORPORA_DIR``). Averages of their pixels make images of a smaller ``size``.

    Raises:
        FieldError: the size is none that 32 is a multiple of.
    """

    path: str
    size: Whole = 32

    channels: ClassVar[int] = 3
    levels: ClassVar[int] = 256
    num_classes: ClassVar[int] = 10

    def __post_init__(self) -> None:
        check_whole("size", self.size, 1, 32)
        if 32 % self.size:
            raise FieldError("size", expected="a divisor of 32", got=self.size)

    @property
    def file_names(self) -> tuple[str, ...]:
        """The files that there must be; where one is held out, it is the last."""
        raise NotImplementedError

    @property
    def label_bytes(self) -> int | None:
        """How many bytes of classes stand before the pixels of an image; None where the files are archives of NumPy."""
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cifar10(ImageFiles):
    """CIFAR-10 in its binary version: 50,000 images to train on, 10,000 held out, ten classes."""

    kind: Literal["cifar10"] = "cifar10"

    __pydantic_config__: ClassVar = NAMED_BY_KIND

    @property
    def file_names(self) -> tuple[str, ...]:
        """Five batches, and that of the test."""
        return (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cifar100(ImageFiles):
    """CIFAR-100 in its binary version: as many images as CIFAR-10, a hundred classes."""

    kind: Literal["cifar100"] = "cifar100"

    num_classes: ClassVar[int] = 100

    __pydantic_config__: ClassVar = NAMED_BY_KIND

    @property
    def file_names(self) -> tuple[str, ...]:
        """That to train on, and that of the test."""
        return ("train.bin", "test.bin")

    @property
    def label_bytes(self) -> int:
        """The superclass, and the class."""
        return 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cifar5m(ImageFiles):
    """CIFAR-5M, six million images that a diffusion model has made of CIFAR-10 (2010.08127), or the first ``parts`` of its
    six files; the last 10,000 images are held out."""

    kind: Literal["cifar5m"] = "cifar5m"
    parts: Whole = 6

    __pydantic_config__: ClassVar = NAMED_BY_KIND

    def __post_init__(self) -> None:
        ImageFiles.__post_init__(self)
        check_whole("parts", self.parts, 1, 6)

    @property
    def file_names(self) -> tuple[str, ...]:
        """The parts."""
        return tuple(f"cifar5m_part{number}.npz" for number in range(self.parts))

    @property
    def label_bytes(self) -> None:
        """They are archives."""
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class HubImages:
    """The images of a data set of Hugging Face, by its name, in three colours: the shorter side of each is scaled to
    ``size``, and the middle of the longer one is kept. A worker looks for it, when it is first needed there.

    Raises:
        FieldError: a name could be something else than one, both splits are the same, or a number is out of range.
    """

    name: str
    config: str | None = None
    train_split: str = "train"
    held_out_split: str = "validation"
    image_field: str = "image"
    label_field: str = "label"
    size: Whole
    num_classes: Whole
    kind: Literal["hugging_face"] = "hugging_face"

    channels: ClassVar[int] = 3
    levels: ClassVar[int] = 256

    __pydantic_config__: ClassVar = NAMED_BY_KIND

    def __post_init__(self) -> None:
        check_data_set(self.name)
        if self.config is not None:
            check_part("config", self.config)
        for name in ("train_split", "held_out_split", "image_field", "label_field"):
            check_part(name, getattr(self, name))
        if self.train_split == self.held_out_split:
            raise FieldError("held_out_split", expected="another split than train_split", got=self.held_out_split)
        check_whole("size", self.size, 1, 1024)
        check_whole("num_classes", self.num_classes, 2, 65_536)


Images = Annotated[Digits | Cifar10 | Cifar100 | Cifar5m | HubImages, Discriminator("kind")]
"""Any set of images."""
