"""The one door to pydicom's parser: a source -> the listed elements of its header, as plain numbers and codes.

What is not listed is skipped unread. pydicom quotes values in its warnings and errors (a name among them), so none of them is
passed on: a value that cannot be used is reported by its keyword alone.
Source: DICOM PS3.5 (encoding), PS3.10 (files), PS3.3 (C.7.6.16: functional groups of enhanced multi-frame objects).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, BinaryIO

from mri_ds.data.dicom.decode import DEFLATED
from mri_ds.data.dicom.deflated import inflate
from mri_ds.data.dicom.files import MARK, PREAMBLE, Source, is_dicom_bytes
from mri_ds.errors import InputError

INSTALL = "pip install 'mri_ds[dicom]'"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
GROUP_LENGTH_BYTES = 12  # of the element that says how long the meta header is behind it
MAX_VALUES = 1000  # in one element that we use

# Where enhanced multi-frame objects keep, per frame or shared, what classic ones have at the top
MACROS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "FrameType": "MRImageFrameTypeSequence",
    "ComplexImageComponent": "MRImageFrameTypeSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "RepetitionTime": "MRTimingAndRelatedParametersSequence",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "EchoTrainLength": "MRTimingAndRelatedParametersSequence",
    "InversionTimes": "MRModifierSequence",
    "PixelBandwidth": "MRImagingModifierSequence",
    "TransmitterFrequency": "MRImagingModifierSequence",
    "NumberOfAverages": "MRAveragesSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
}
GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


class Damaged(Exception):
    """An element that cannot be used; its text is the keyword, never the value."""


class Elements:
    """Elements of one frame, by keyword: its own functional groups first, then the shared ones, then the file's top level."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        self._datasets = datasets  # top level last

    def raw(self, keyword: str) -> Any:
        """The value as pydicom gives it; None where it is absent or empty. Raises Damaged."""
        try:
            for dataset in self._datasets:
                if dataset is not self._datasets[-1]:
                    sequence = dataset.get(MACROS[keyword]) if keyword in MACROS else None
                    dataset = sequence[0] if sequence else {}
                value = dataset.get(keyword)
                if value is not None and (not hasattr(value, "__len__") or len(value)):
                    return value
        except Exception:  # pydicom converts on access, and a bad value raises whatever it likes
            raise Damaged(keyword) from None
        return None

    def numbers(self, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
        """Finite floats, `count` of them; None where absent."""
        value = self.raw(keyword)
        if value is None:
            return None
        try:
            values = list(value)[:MAX_VALUES] if hasattr(value, "__iter__") and not isinstance(value, str | bytes) else [value]
            numbers = tuple(float(v) for v in values)
        except (TypeError, ValueError, OverflowError, ArithmeticError):
            raise Damaged(keyword) from None
        if not all(map(math.isfinite, numbers)) or (count is not None and len(numbers) != count):
            raise Damaged(keyword)
        return numbers

    def number(self, keyword: str) -> float | None:
        values = self.numbers(keyword)
        return values[0] if values else None

    def harmless(self, keyword: str) -> float | None:
        """As `number`, but a damaged value counts as absent: for what the volume does not depend on."""
        try:
            return self.number(keyword)
        except Damaged:
            return None

    def integer(self, keyword: str) -> int | None:
        value = self.number(keyword)
        if value is not None and value != int(value):
            raise Damaged(keyword)
        return None if value is None else int(value)

    def codes(self, keyword: str) -> tuple[str, ...]:
        """Texts of an element, upper case and stripped; () where absent."""
        value = self.raw(keyword)
        try:
            values = (
                [] if value is None else list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            )
            return tuple(str(v).strip().upper() for v in values[:MAX_VALUES])
        except Exception:
            raise Damaged(keyword) from None

    def text(self, keyword: str) -> str:
        """All texts of an element as one, joined by a backslash as they are in the file."""
        return "\\".join(self.codes(keyword))

    def vr(self, keyword: str) -> str:
        """The value representation that an element of the top level was written with, such as OB."""
        return str(self._datasets[-1].get_item(keyword).VR)

    def private(self, group: int, creator: str, element: int) -> Any:
        """The value of a private element of this creator, at the top level; None where absent. Raises Damaged."""
        try:
            block = self._datasets[-1].private_block(group, creator)
            return block[element].value if element in block else None
        except KeyError:
            return None
        except Exception:
            raise Damaged(f"private element ({group:04X},xx{element:02X})") from None


def read_elements(source: Source, keywords: Sequence[str | int], *, pixels: bool = False) -> tuple[list[Elements], str] | None:
    """The listed elements of one file, one Elements per frame with groups of its own (else just one), and the transfer syntax.

    None for a file that is not DICOM. Raises InputError for one that claims to be, is damaged, or inflates to too much.
    """
    with source.open() as file:
        head = file.read(PREAMBLE + len(MARK))
        if not is_dicom_bytes(head):
            if source.claims_dicom:
                raise InputError(f"{source.label} is not DICOM", where=source.where, fix="export it again, or take it out")
            return None
        try:
            with quiet() as pydicom:
                syntax, end = _meta_header(pydicom, file, head)
                file.seek(end)
                plain = inflate(source, file) if syntax == DEFLATED else file  # pydicom would inflate it without a limit
                plain.seek(0)
                dataset = pydicom.dcmread(plain, stop_before_pixels=not pixels, force=True, specific_tags=list(keywords))
                syntax = syntax or _guessed_syntax(dataset)
                return [Elements([*groups, dataset]) for groups in _groups(dataset)], syntax
        except InputError:
            raise
        except Damaged as err:
            raise damaged(source, str(err)) from None
        except Exception:  # on broken bytes the parser raises a dozen kinds, some quoting what they read
            raise damaged(source, "header") from None


def damaged(source: Source, what: str) -> InputError:
    return InputError(
        f"{source.label} is damaged ({what})", where=source.where, fix="export it again from the scanner or archive"
    )


def _groups(dataset: Any) -> Iterator[list[Any]]:
    frames, shared = (dataset.get(name) for name in GROUPS)
    if not frames:
        yield list(shared or [])[:1]
        return
    for frame in frames:
        yield [frame, *list(shared or [])[:1]]


def _meta_header(pydicom: ModuleType, file: BinaryIO, head: bytes) -> tuple[str, int]:
    """The transfer syntax, and where the meta header ends; it is always explicit VR little endian. Nothing behind it is used."""
    start = PREAMBLE + len(MARK) if head[PREAMBLE:] == MARK else 0
    file.seek(start)
    meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    length = meta.get("FileMetaInformationGroupLength")
    end = start + GROUP_LENGTH_BYTES + length if isinstance(length, int) else file.tell()
    return str(meta.get("TransferSyntaxUID") or ""), end


def _guessed_syntax(dataset: Any) -> str:
    implicit, little = dataset.original_encoding
    return IMPLICIT_LITTLE if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"


@contextmanager
def quiet() -> Iterator[ModuleType]:
    """pydicom without its warnings and log lines, which quote values. Raises InputError where it is not installed."""
    try:
        import pydicom
        import pydicom.filereader
    except ImportError:
        raise InputError("reading DICOM needs pydicom, which is not installed", fix=INSTALL) from None
    logger = logging.getLogger("pydicom")
    was_disabled, mode = logger.disabled, pydicom.config.settings.reading_validation_mode
    logger.disabled = True
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield pydicom
    finally:
        logger.disabled = was_disabled
        pydicom.config.settings.reading_validation_mode = mode
