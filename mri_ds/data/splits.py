"""Who is held out: folds by subject, never by image."""

from collections import defaultdict
from collections.abc import Hashable, Sequence


def assign_folds(subject_ids: Sequence[str], *, num_folds: int = 5, strata: Sequence[Hashable] | None = None) -> dict[str, int]:
    """{subject: fold}. Sorted subjects are dealt out in turn: without strata, fold 0 is every `num_folds`-th subject.

    With strata (one per subject, such as its class) each stratum is dealt on from where the one before stopped, so that classes
    and fold sizes are even within one. A function of the ids and strata alone, whatever their order.

    >>> assign_folds(["a", "b", "c"], num_folds=2)
    {'a': 0, 'b': 1, 'c': 0}
    """
    if num_folds < 2:
        raise ValueError(f"num_folds = {num_folds}: choose at least 2")
    if len(set(subject_ids)) != len(subject_ids):
        raise ValueError("subject ids must be unique")
    groups: dict[str, list[str]] = defaultdict(list)
    for subject, stratum in zip(subject_ids, strata if strata is not None else [""] * len(subject_ids), strict=True):
        groups[repr(stratum)].append(subject)
    dealt = [subject for stratum in sorted(groups) for subject in sorted(groups[stratum])]
    return {subject: i % num_folds for i, subject in enumerate(dealt)}
