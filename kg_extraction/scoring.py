"""What a checkpoint answers: relation logits of pairs of names, log-probabilities of names for a masked tail."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..chain_graphs.tokenizer import check_tokenizer, read_tokenizer
from ..code_graph.schema import RELATION_NAMES
from .decoding import TailTrie
from .project import Corpus
from .questions import IGNORED, Question, QuestionCollator

RELATION_MODE, TAIL_MODE = "relation", "tail"
MODES = (RELATION_MODE, TAIL_MODE)


def modes_of(mnm_target: str) -> tuple[str, ...]:
    """The modes that a checkpoint was trained for."""
    return MODES if mnm_target == "both" else (mnm_target,)


# Weights, configuration, tokenizer and calibration; no code, no pickle.
_CHECKPOINT_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "*.txt",
    "calibration.json",
)


def fetch_checkpoint(name: str | Path) -> Path:
    """The directory of a checkpoint: itself, or where the files of a repository on the Hub were put.

    Args:
        name: a directory, or `OWNER/NAME`; only data files are fetched.

    Raises:
        ValueError: neither.
    """
    directory = Path(name)
    if directory.exists() or str(name).count("/") != 1 or str(name).startswith((".", "~", "/")):
        return directory
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(_CHECKPOINT_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--model {name}: no such directory, and not to be had from the Hub ({reason})") from error


def load_checkpoint(directory: str | Path, device: str = "cpu"):
    """A pretrained GraphMERT with its heads, and its tokenizer, from a directory; runs no code from it.

    Args:
        directory: a saved checkpoint with safetensors weights.
        device: where to put the model.

    Returns:
        `GraphMertForPreTraining` in evaluation mode, and the tokenizer.

    Raises:
        ValueError: no such directory, another kind of model, files that are missing or damaged, relations that are not the
            code graph's, or a device that is not there.
    """
    from ..modeling_graphmert import GraphMertForPreTraining

    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"--model {directory}: no config.json there; give the directory of a saved GraphMERT checkpoint"
        )
    try:
        model, loading = GraphMertForPreTraining.from_pretrained(
            directory, use_safetensors=True, output_loading_info=True, local_files_only=True
        )
        tokenizer = read_tokenizer(directory, local_files_only=True)
        check_tokenizer(tokenizer, str(directory))
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"--model {directory}: cannot be loaded ({type(error).__name__}: {reason})") from error
    missing = sorted(name for name in loading["missing_keys"] if "decoder" not in name)
    if missing:
        raise ValueError(
            f"--model {directory}: holds no weights for {', '.join(missing[:3])}; fact extraction needs a checkpoint of "
            "GraphMertForPreTraining, as run_pretraining.py saves it"
        )
    names = tuple(model.config.relation_names)
    if names != RELATION_NAMES:
        raise ValueError(
            f"--model {directory}: its relations ({', '.join(names)}) are not those of this version's code graph "
            f"({', '.join(RELATION_NAMES)})"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"--model {directory}: the tokenizer has {len(tokenizer)} entries, the model only {model.config.vocab_size}"
        )
    if model.config.edge_relations:
        raise ValueError(
            f"--model {directory}: reads {', '.join(model.config.edge_relations)} as edges between roots, which fact "
            "extraction does not; train one without --edge_relations"
        )
    if model.config.leaves_per_root < 1:
        raise ValueError(
            f"--model {directory}: leaves_per_root is 0; a model without leaves cannot be asked for facts"
        )
    try:
        model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {device}: cannot be used ({reason})") from error
    return model, tokenizer


def check_modes(modes: Sequence[str], mnm_target: str) -> None:
    """Refuse a mode that the checkpoint was not trained for.

    Raises:
        ValueError: says how to train one.
    """
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; modes are {', '.join(MODES)}")
        if mode not in modes_of(mnm_target):
            raise ValueError(
                f"the checkpoint was trained with mnm_target={mnm_target!r} and has never filled in a {mode}: train one "
                f"with run_pretraining.py --mnm_target both, or ask only for --modes {mnm_target}"
            )


class Scorer:
    """Asks a checkpoint questions about one corpus.

    Args:
        model: `GraphMertForPreTraining` in evaluation mode.
        tokenizer: its tokenizer.
        corpus: cut with the model's `num_roots` and `leaves_per_root`.
        batch_size: questions in one forward pass.
        progress: show progress bars on a terminal.
    """

    def __init__(self, model, tokenizer, corpus: Corpus, batch_size: int = 32, progress: bool = False):
        self.model, self.corpus = model, corpus
        self.mask_token_id = tokenizer.mask_token_id
        self.masked_relation = model.config.num_relations
        self.collator = QuestionCollator(corpus, tokenizer.pad_token_id)
        self.batch_size, self.progress = batch_size, progress

    def _batches(
        self, questions: Sequence[Question], description: str
    ) -> Iterator[tuple[np.ndarray, dict, np.ndarray]]:
        """Questions of similar size together: (their numbers, batch on the model's device, places of their leaves)."""
        order = np.argsort([self.collator.num_nodes(question) for question in questions], kind="stable")
        bar = tqdm(total=len(questions), desc=description, disable=None if self.progress else True, leave=False)
        for begin in range(0, len(order), self.batch_size):
            numbers = order[begin : begin + self.batch_size]
            batch, places = self.collator([questions[k] for k in numbers])
            device = next(self.model.parameters()).device
            yield numbers, {name: tensor.to(device) for name, tensor in batch.items()}, places
            bar.update(len(numbers))
        bar.close()

    @torch.inference_mode()
    def relation_logits(self, questions: Sequence[Question]) -> np.ndarray:
        """Logits of the relation head at each question's leaf.

        Args:
            questions: with `relation` the masked one.

        Returns:
            float32 `(questions, num_relations)`.
        """
        result = np.zeros((len(questions), self.masked_relation), dtype=np.float32)
        for numbers, batch, places in self._batches(questions, "asking for relations"):
            # No label anywhere: the LM head has nothing to do.
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
            logits = self.model(**batch, sparse_prediction=True).relation_logits
            rows = torch.arange(len(numbers))
            result[numbers] = logits[rows, places[:, 0], places[:, 1]].float().cpu().numpy()
        return result

    @torch.inference_mode()
    def tail_scores(
        self, questions: Sequence[Question], tries: Sequence[TailTrie], log_prior: np.ndarray
    ) -> list[np.ndarray]:
        """Log-probability of every name that the tail of each question may be.

        Args:
            questions: their `leaf` is ignored; each is asked once for every number of tokens in its trie.
            tries: the names, one trie for each question (the same object may serve many).
            log_prior: float `(L + 1,)`, log-probability of each number of tokens (`decoding.length_prior`).

        Returns:
            For each question float64 `(names,)`.
        """
        scores = [np.full(len(trie), -np.inf) for trie in tries]
        asked = [
            (k, replace(question, leaf=(self.mask_token_id,) * length))
            for k, (question, trie) in enumerate(zip(questions, tries, strict=True))
            for length in trie.lengths
        ]
        for numbers, batch, _ in self._batches([question for _, question in asked], "asking for tails"):
            logits = self.model(**batch, sparse_prediction=True).logits
            log_probs = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
            begin = 0
            for number in numbers:
                k, question = asked[number]
                size = len(question.leaf)
                members, values = tries[k].score(log_probs[begin : begin + size])
                scores[k][members] = values
                begin += size
        return [score + log_prior[trie.num_tokens] for score, trie in zip(scores, tries, strict=True)]
