"""Mean reciprocal rank and recall at k of one right candidate among the candidates of each query.

    import evaluate
    metric = evaluate.load("metrics/reciprocal_rank")
    metric.compute(predictions=[[0.9, 0.1, 0.5], [0.2, 0.3, 0.1]], references=[0, 0])
    # {'mrr': 0.75, 'recall_at_1': 0.5, 'recall_at_10': 1.0, 'ranks': [1.0, 2.0]}

Ranks come from `scipy.stats.rankdata`; equal scores share the mean of their ranks, so that a scorer which cannot tell
candidates apart gains nothing.
"""

import datasets
import evaluate
import numpy as np
from scipy.stats import rankdata

_DESCRIPTION = "Mean reciprocal rank and recall at k of one right candidate among the candidates of each query."
_CITATION = """\
@article{husain2019codesearchnet,
  title={CodeSearchNet Challenge: Evaluating the State of Semantic Code Search},
  author={Husain, Hamel and Wu, Ho-Hsiang and Gazit, Tiferet and Allamanis, Miltiadis and Brockschmidt, Marc},
  journal={arXiv:1909.09436},
  year={2019}
}
"""
_INPUTS = """\
Args:
    predictions: for each query the scores of its candidates, higher is better; queries may differ in their number.
    references: for each query the index of the right candidate.
    ks: the k of recall at k.

Returns:
    `mrr`, `recall_at_K` for each k, and `ranks`: the rank of each query's right candidate, from 1.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ReciprocalRank(evaluate.Metric):
    """See the module."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, ks=(1, 10)):
        ranks = np.empty(len(references))
        for query, (scores, right) in enumerate(zip(predictions, references, strict=True)):
            scores = np.asarray(scores, dtype=np.float32)
            if not 0 <= right < len(scores):
                raise ValueError(f"query {query} has {len(scores)} candidates, so that none of them is number {right}")
            if np.isnan(scores).any():
                raise ValueError(f"query {query}: a score is not a number")
            ranks[query] = rankdata(-scores, method="average")[right]
        figures = {"mrr": float(np.mean(1 / ranks))}
        figures |= {f"recall_at_{k}": float(np.mean(ranks <= k)) for k in ks}
        return {**figures, "ranks": ranks.tolist()}
