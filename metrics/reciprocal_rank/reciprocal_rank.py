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
        sizes = np.array([len(scores) for scores in predictions])
        for query, (size, right) in enumerate(zip(sizes, references, strict=True)):
            if not 0 <= right < size:
                raise ValueError(f"query {query} has {size} candidates, so that none of them is number {right}")
        ranks = np.empty(len(references))
        for size in np.unique(sizes):
            queries = np.flatnonzero(sizes == size)
            scores = np.asarray([predictions[query] for query in queries], dtype=np.float32)
            if np.isnan(scores).any():
                raise ValueError(f"query {queries[np.isnan(scores).any(axis=1)][0]}: a score is not a number")
            right = np.asarray(references)[queries]
            ranks[queries] = rankdata(-scores, method="average", axis=1)[np.arange(len(queries)), right]
        figures = {"mrr": float(np.mean(1 / ranks))}
        figures |= {f"recall_at_{k}": float(np.mean(ranks <= k)) for k in ks}
        return {**figures, "ranks": ranks.tolist()}
