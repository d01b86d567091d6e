"""Who is held out: folds by subject, never by image."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

FOLDS = 0xF01D  # sets these dice apart from others of the same seed


def assign_folds(
    subject_ids: Sequence[str], *, num_folds: int = 5, strata: Sequence[Hashable] | None = None, seed: int | None = None
) -> dict[str, int]:
    """{subject: fold}. Sorted subjects are dealt out in turn: without strata, fold 0 is every `num_folds`-th subject.

    With a seed the subjects of each stratum are shuffled before they are dealt out.

    With strata (one per subject, such as its class) each stratum is dealt on from where the one before stopped, so that classes
    and fold sizes are even within one. A function of the ids, strata and seed alone, whatever their order.
    Raises ValueError for fewer than two folds, a subject given twice, or another number of strata than of subjects.

    >>> assign_folds(["a", "b", "c"], num_folds=2)
    {'a': 0, 'b': 1, 'c': 0}
    """
    if num_folds < 2:
        raise ValueError(f"num_folds = {num_folds}: choose at least 2")
    strata = strata if strata is not None else [None] * len(subject_ids)
    if len(strata) != len(subject_ids):
        raise ValueError(f"{len(subject_ids)} subjects and {len(strata)} strata: give one stratum per subject")
    groups: dict[str, list[str]] = defaultdict(list)
    for subject, stratum in zip(subject_ids, strata):
        groups[repr(stratum)].append(subject)  # strata may be of several types, which have no order of their own
    dice = None if seed is None else np.random.default_rng([seed, FOLDS])
    dealt: list[str] = []
    for stratum in sorted(groups):
        members = sorted(groups[stratum])
        dealt += members if dice is None else [members[i] for i in dice.permutation(len(members))]
    folds = {subject: i % num_folds for i, subject in enumerate(dealt)}
    if len(folds) < len(dealt):
        raise ValueError(f"subject {Counter(dealt).most_common(1)[0][0]!r} is given twice: fold by subject, not by image")
    return folds
