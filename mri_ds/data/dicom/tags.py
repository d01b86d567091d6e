"""What of a header may leave it: a listed set of acquisition tags, each a number in range or a code out of a known set.

Dates, names, UIDs, protocol and series descriptions, comments and private text never do; only `mri-ds series` shows on the screen
what a series calls itself, where that passes `names_nobody`. The three listed texts that vendors
choose (manufacturer, model, sequence name) are reduced: the manufacturer to a known one or "other", the others to a short
technical form, dropped when they share a word with the patient, the staff or the site.
Source: DICOM PS3.15, annex E, for what identifies; PS3.3, C.8.3.1 and C.8.13.5, for the defined terms.
"""

import re
from collections.abc import Iterable

from mri_ds.data.dicom.elements import Damaged, Elements

Acquisition = dict[str, float | str]

# name of ours: (keywords, the first that is present; lowest; highest)
NUMBERS: dict[str, tuple[tuple[str, ...], float, float]] = {
    "field_strength_t": (("MagneticFieldStrength",), 0.001, 30),
    "repetition_time_ms": (("RepetitionTime",), 0, 1e6),
    "echo_time_ms": (("EffectiveEchoTime", "EchoTime"), 0, 1e5),
    "inversion_time_ms": (("InversionTimes", "InversionTime"), 0, 1e5),
    "flip_angle_deg": (("FlipAngle",), 0, 360),
    "echo_train_length": (("EchoTrainLength",), 0, 1e4),
    "number_of_averages": (("NumberOfAverages",), 0, 1e4),
    "pixel_bandwidth_hz": (("PixelBandwidth",), 0, 1e6),
    "imaging_frequency_mhz": (("TransmitterFrequency", "ImagingFrequency"), 0, 1e4),
    "slice_thickness_mm": (("SliceThickness",), 0, 1e3),
    "percent_sampling": (("PercentSampling",), 0, 100),
    "b_value_s_per_mm2": (("DiffusionBValue",), 0, 1e5),
}
CODES: dict[str, tuple[str, frozenset[str]]] = {
    "modality": ("Modality", frozenset({"MR", "CT", "PT", "NM", "OT"})),
    "scanning_sequence": ("ScanningSequence", frozenset({"SE", "IR", "GR", "EP", "RM"})),
    "sequence_variant": ("SequenceVariant", frozenset({"SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"})),
    "acquisition_type": ("MRAcquisitionType", frozenset({"1D", "2D", "3D"})),
    "phase_encoding": ("InPlanePhaseEncodingDirection", frozenset({"ROW", "COL", "COLUMN"})),
    "nucleus": ("ImagedNucleus", frozenset({"1H", "3HE", "7LI", "13C", "19F", "23NA", "31P", "129XE"})),
    "patient_position": ("PatientPosition", frozenset({"HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL"})),
}
VENDORS = ("Siemens", "GE", "Philips", "Canon", "Toshiba", "Hitachi", "Fujifilm", "United Imaging", "UIH", "Bruker", "Esaote",
           "Hyperfine", "Neusoft", "Mediso", "Agilent", "Varian", "Marconi", "Picker", "Elscint", "Shimadzu", "ASG")  # fmt: skip
TEXTS = {"model": "ManufacturerModelName", "sequence_name": "SequenceName"}
TECHNICAL = re.compile(r"[A-Z0-9*#_ ./+-]{1,32}")
LONG_NUMBER = re.compile(r"\d[\d./-]{4,}\d")  # a date or an identifier, not a version

ACQUISITION = (
    *(keyword for keywords, _, _ in NUMBERS.values() for keyword in keywords),
    *(keyword for keyword, _ in CODES.values()),
    *TEXTS.values(),
    "Manufacturer",
)
IDENTIFYING = (  # read only so that none of it passes in another element
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate", "PatientBirthName", "PatientAddress",
    "PatientMotherBirthName", "AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress",
    "InstitutionalDepartmentName",
    "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy", "RequestingPhysician",
    "StationName", "DeviceSerialNumber",
)  # fmt: skip


def acquisition_of(get: Elements) -> Acquisition:
    """The listed tags of one frame that are present and plausible: {"echo_time_ms": 9.5, "manufacturer": "Siemens", ...}."""
    found: Acquisition = {}
    for name, (keywords, low, high) in NUMBERS.items():
        value = next((v for keyword in keywords if (v := get.harmless(keyword)) is not None), None)
        if value is not None and low <= value <= high:
            found[name] = value
    for name, (keyword, known) in CODES.items():
        codes = [code for code in _texts(get, keyword) if code in known]
        if codes:
            found[name] = "+".join(codes)
    if vendor := " ".join(_texts(get, "Manufacturer")):
        found["manufacturer"] = next((v for v in VENDORS if re.search(rf"\b{v.upper()}", vendor)), "other")
    for name, keyword in TEXTS.items():
        text = " ".join(_texts(get, keyword))
        if TECHNICAL.fullmatch(text) and names_nobody(text, get):
            found[name] = text
    return found


def common(acquisitions: Iterable[Acquisition]) -> Acquisition:
    """What all frames of a volume agree on."""
    first, *rest = acquisitions
    return {name: value for name, value in sorted(first.items()) if all(other.get(name) == value for other in rest)}


def _texts(get: Elements, keyword: str) -> tuple[str, ...]:
    """Upper case; () where absent or damaged: no volume depends on these."""
    try:
        return get.codes(keyword)
    except Damaged:
        return ()


def names_nobody(text: str, get: Elements) -> bool:
    """Whether a text (upper case, printable) holds no long number, and no piece, of three characters or more, of what names the
    patient, the staff or the site."""
    if not text.isprintable() or LONG_NUMBER.search(text):
        return False
    try:
        identifying = " ".join(get.text(keyword) for keyword in IDENTIFYING)
    except Damaged:  # what cannot be read cannot be ruled out
        return False
    return not any(word in text for word in re.split(r"[^\w]+|_", identifying) if len(word) >= 3)
