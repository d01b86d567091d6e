"""What groups subjects in tables of results, by columns of their table: a listed few, made coarse before they are kept.

sex (or gender): F, M or O. age (in years): its decade, 90 and more as one, so that nobody's age is stored. scanner (or
scanner_model, manufacturer): the study's code, unless that column is the site (`sites.py`). Nothing else of a table passes into a
shard unless it is a task; a cell that says something else says nothing here.
Source: the ages are those of HIPAA's safe harbour, 45 CFR 164.514(b)(2)(i)(C).
"""

import math
from collections.abc import Mapping

from mri_ds.data.layouts.sites import MAX_LETTERS, site_column
from mri_ds.data.layouts.text import is_missing

SEX_COLUMNS, AGE_COLUMNS, SCANNER_COLUMNS = ("sex", "gender"), ("age",), ("scanner", "scanner_model", "manufacturer")
SEXES = {"f": "F", "female": "F", "w": "F", "woman": "F", "m": "M", "male": "M", "man": "M", "o": "O", "other": "O"}
OLDEST, HIGHEST = 90, 130  # years


def strata_of(row: Mapping[str, str]) -> dict[str, str]:
    """
    >>> strata_of({"Sex": "female", "age": "61.5", "scanner": "n/a", "name": "Doe"})
    {'age_band': '60-69', 'sex': 'F'}
    """
    found = {
        "age_band": age_band(_cell(row, AGE_COLUMNS)),
        "scanner": _code(row),
        "sex": SEXES.get(_cell(row, SEX_COLUMNS).lower(), ""),
    }
    return {name: value for name, value in found.items() if value}


def age_band(age: str | float) -> str:
    """ "" for what is no age in years.

    >>> age_band(7), age_band("61.5"), age_band(94), age_band("n/a")
    ('0-9', '60-69', '90+', '')
    """
    try:
        years = float(age)
    except ValueError:
        return ""
    if not 0 <= years <= HIGHEST:  # nor is nan
        return ""
    decade = 10 * math.floor(years / 10)
    return f"{OLDEST}+" if decade >= OLDEST else f"{decade}-{decade + 9}"


def _code(row: Mapping[str, str]) -> str:
    site = site_column(row)
    code = _cell({name: cell for name, cell in row.items() if name != site}, SCANNER_COLUMNS)
    return code if len(code) <= MAX_LETTERS and code.isprintable() else ""


def _cell(row: Mapping[str, str], columns: tuple[str, ...]) -> str:
    """Of the first of these columns that is there, capitals or not; "" where it says nothing."""
    by_name = {name.lower(): cell for name, cell in row.items()}
    cell = next((by_name[name] for name in columns if name in by_name), "")
    return "" if is_missing(cell) else cell
