"""MAP@R: mean average precision of the first R candidates, R being the number of right candidates of each query.

    import evaluate
    metric = evaluate.load("metrics/map_at_r")
    metric.compute(predictions=[[0.9, 0.1, 0.5, 0.3]], references=[[0, 3]])
    # {'map_at_r': 0.5, 'precision_at_1': 1.0, 'average_precisions': [0.5]}

For a query with the right candidates among the ranks 1..R, MAP@R = 1/R sum over i of P(i), where P(i) is the precision
of the first i if the i-th is right, else 0 (Musgrave, Belongie and Lim 2020, arXiv 2003.08505, sec. 3.2).
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = (
    "Mean average precision of the first R candidates, R being the number of right candidates of each query."
)
_CITATION = """\
@inproceedings{musgrave2020metric,
  title={A Metric Learning Reality Check},
  author={Musgrave, Kevin and Belongie, Serge and Lim, Ser-Nam},
  booktitle={ECCV},
  year={2020}
}
"""
_INPUTS = """\
Args:
    predictions: for each query the scores of its candidates, higher is better; minus infinity leaves a candidate out
        (the query itself, where it stands among the candidates).
    references: for each query the indices of its right candidates, at least one.

Returns:
    `map_at_r`, `precision_at_1` (share of queries whose first candidate is right), and `average_precisions`, one for each
    query. Equal scores are ranked in the order of the candidates.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class MapAtR(evaluate.Metric):
    """See the module."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references):
        average, first = np.empty(len(references)), np.empty(len(references))
        for query, (scores, right) in enumerate(zip(predictions, references, strict=True)):
            scores, right = np.asarray(scores, dtype=np.float32), np.unique(np.asarray(right, dtype=np.int64))
            if len(right) == 0 or right[0] < 0 or right[-1] >= len(scores):
                raise ValueError(
                    f"query {query} has {len(scores)} candidates and the right ones {right.tolist()}; it needs at least "
                    f"one, all of 0..{len(scores) - 1}"
                )
            if np.isnan(scores).any() or np.isneginf(scores[right]).any():
                raise ValueError(f"query {query}: a score is not a number, or a right candidate is left out")
            ranking = np.argsort(-scores, kind="stable")[: len(right)]
            is_right = np.isin(ranking, right)
            precision = np.cumsum(is_right) / np.arange(1, len(right) + 1)
            average[query], first[query] = np.mean(precision * is_right), is_right[0]
        return {
            "map_at_r": float(average.mean()),
            "precision_at_1": float(first.mean()),
            "average_precisions": average.tolist(),
        }
