"""Configuration of GraphMERT: RoBERTa's fields and those of the leafy chain graph."""

from dataclasses import field
from typing import Any

from transformers import RobertaConfig

# The setup sheet's order. The list stands here as well as in code_graph/schema.py because this file travels alone with
# a checkpoint; a test holds the two equal.
DEFAULT_RELATION_NAMES = (
    "calls",
    "declares",
    "instantiates",
    "contains",
    "has_field",
    "has_type",
    "inherits",
    "has_parameter",
    "returns",
    "imported_from",
    "imports",
    "flows_to",
)
DECAY_MODES = ("bias", "multiplicative", None)
MNM_TARGETS = ("relation", "tail", "both")
LEAF_POSITIONS = ("slot", "root", "root_slot")
HGAT_INITS = ("zeros", "normal", "identity")
AUTO_MAP = {
    "AutoConfig": "configuration_graphmert.GraphMertConfig",
    "AutoModel": "modeling_graphmert.GraphMertModel",
    "AutoModelForMaskedLM": "modeling_graphmert.GraphMertForMaskedLM",
    "AutoModelForPreTraining": "modeling_graphmert.GraphMertForPreTraining",
    "AutoModelForSequenceClassification": "modeling_graphmert.GraphMertForSequenceClassification",
}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class GraphMertConfig(RobertaConfig):
    """Configuration of a GraphMERT encoder (arXiv 2510.09580) on leafy chain graphs of code.

    Every field of `RobertaConfig` keeps its meaning; those below are added. The defaults are CodeBERT-base's size with
    128 root tokens and 7 leaf slots for each.

    Args:
        num_roots: root tokens of the canonical graph, `<s>` and `</s>` included.
        leaves_per_root: leaf slots of each root.
        num_relations: number of relations; id `num_relations` is the masked relation.
        relation_names: names of the relations in the order of their ids. Default: the twelve of the code-graph schema, cut
            or not given where `num_relations` is another number.
        include_uses, include_site_anchors, exclude_relations, edge_relations: which facts of a code graph the model was
            trained on, and which of them as edges between roots (`chain_graphs.WindowDataset`); a processor reads code so.
        use_hgat: whether relations change leaf embeddings.
        relation_dropout: dropout on the relation parameters while training.
        hgat_negative_slope: slope of H-GAT's LeakyReLU below zero (0.2 as in GAT).
        hgat_init: how H-GAT's matrices W_r start: "zeros" (t' = t), "normal", or "identity" (t' = t + scale * head).
        hgat_init_scale: standard deviation of "normal", factor of "identity".
        head_memory_keys: keys of heads whose tails in other projects are remembered (`HeadMemory`); 0 for no memory.
        head_memory_folds: groups of projects that these are kept apart for.
        head_memory_answers: the most first word pieces of tails that are kept for a key and group.
        decay_mode: "bias" adds g(d) to attention logits, "multiplicative" multiplies them by exp(g(d)), None leaves
            attention as it is.
        decay_base: lambda of the decay, between 0 and 1: one number, or several that are dealt to the heads in turn, where 1
            is no decay. By default every other head decays fast and the others not at all.
        decay_offset_init: first value of the learnable offset p of each head.
        leaf_position: "root_slot" gives leaf (i, j) the position of its root and an embedding of j, which all roots share;
            "root" the position of its root alone; "slot", the paper's, that of its canonical slot R + L i + j.
        mnm_target: "relation", "tail" or "both": what masked node modelling predicts.
        mlm_weight: weight of the masked-language-modelling loss; a trainer may move it while it trains.
        mnm_weight: weight of the masked-node-modelling loss, likewise.
        span_boundary: whether the model has SpanBERT's span-boundary objective.
        span_boundary_length: longest masked span that this objective tells positions apart in.

    Raises:
        ValueError: a field has a value outside its range; the message names the field.

    Example:

        >>> from graphmert import GraphMertConfig
        >>> GraphMertConfig().num_nodes
        1024
    """

    model_type = "graphmert"

    max_position_embeddings: int = 1026
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-5

    num_roots: int = 128
    leaves_per_root: int = 7
    num_relations: int = 12
    relation_names: list[str] | None = None
    include_uses: bool = True
    include_site_anchors: bool = True
    exclude_relations: list[str] | None = None
    edge_relations: list[str] | None = None
    use_hgat: bool = True
    relation_dropout: float = 0.3
    hgat_negative_slope: float = 0.2
    hgat_init: str = "zeros"
    hgat_init_scale: float = 0.02
    head_memory_keys: int = 0
    head_memory_folds: int = 4
    head_memory_answers: int = 2
    decay_mode: str | None = "bias"
    decay_base: float | list[float] = field(default_factory=lambda: [0.1, 1.0])
    decay_offset_init: float = 1.0
    leaf_position: str = "root_slot"
    mnm_target: str = "both"
    mlm_weight: float = 0.6
    mnm_weight: float = 0.4
    span_boundary: bool = False
    span_boundary_length: int = 7
    auto_map: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.relation_names is None and self.num_relations == len(DEFAULT_RELATION_NAMES):
            self.relation_names = list(DEFAULT_RELATION_NAMES)
        elif self.relation_names is None and _is_int(self.num_relations) and self.num_relations > 0:
            self.relation_names = [f"relation_{i}" for i in range(self.num_relations)]
        self.exclude_relations = [] if self.exclude_relations is None else self.exclude_relations
        self.edge_relations = [] if self.edge_relations is None else self.edge_relations
        # Always the plain map, whole: the code files travel beside config.json, whatever class was saved.
        self.auto_map = {**(self.auto_map or {}), **AUTO_MAP}
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in Transformers, but a saved configuration must name its relations: their order is the meaning of the weights.

        Raises:
            ValueError: it does not.
        """
        is_saved = config_dict.get("model_type") == cls.model_type
        if is_saved and not config_dict.get("relation_names") and not kwargs.get("relation_names"):
            raise ValueError(
                "GraphMertConfig: relation_names is missing in the saved configuration; without the names and their order "
                "nobody knows what the relation weights mean."
            )
        return super().from_dict(config_dict, **kwargs)

    @property
    def num_nodes(self) -> int:
        """Canonical slots R (1 + L) of one leafy chain graph."""
        return self.num_roots * (1 + self.leaves_per_root)

    @property
    def num_usable_positions(self) -> int:
        """Tokens that fit: RoBERTa's position ids start at `pad_token_id + 1`."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: names the field, its value and what it may be.
        """

        def require(valid: bool, name: str, text: str) -> None:
            if not valid:
                raise ValueError(f"GraphMertConfig: {name} is {getattr(self, name)!r}, but {text}.")

        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        counts = ("num_roots", "num_relations", "span_boundary_length", "head_memory_folds", "head_memory_answers")
        for name in sizes + counts:
            require(
                _is_int(getattr(self, name)) and getattr(self, name) >= 1, name, "it must be an integer of at least 1"
            )
        for name in ("leaves_per_root", "head_memory_keys"):
            require(
                _is_int(getattr(self, name)) and getattr(self, name) >= 0, name, "it must be an integer of at least 0"
            )
        require(
            _is_int(self.pad_token_id) and self.pad_token_id >= 0,
            "pad_token_id",
            "it must be a token id (positions start after it)",
        )
        for name in ("relation_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            value = getattr(self, name)
            require(_is_number(value) and 0 <= value < 1, name, "it must be a probability, 0 <= p < 1")
        for name in ("mlm_weight", "mnm_weight"):
            value = getattr(self, name)
            require(_is_number(value) and value >= 0, name, "it must be a number of at least 0")
        if isinstance(self.decay_base, list | tuple):
            require(
                len(self.decay_base) > 0 and all(_is_number(base) and 0 < base <= 1 for base in self.decay_base),
                "decay_base",
                "bases of several heads must be above 0 and at most 1",
            )
            # The default has two; a model with a single head takes the first.
            require(
                len(self.decay_base) <= max(self.num_attention_heads, 2),
                "decay_base",
                f"there are num_attention_heads={self.num_attention_heads} heads to deal them to",
            )
        else:
            require(
                _is_number(self.decay_base) and 0 < self.decay_base < 1,
                "decay_base",
                "it must lie between 0 and 1, both excluded",
            )
        require(_is_number(self.decay_offset_init), "decay_offset_init", "it must be a number")
        require(_is_number(self.hgat_negative_slope), "hgat_negative_slope", "it must be a number")
        require(self.hgat_init in HGAT_INITS, "hgat_init", "it must be one of " + ", ".join(map(repr, HGAT_INITS)))
        require(
            _is_number(self.hgat_init_scale) and self.hgat_init_scale > 0,
            "hgat_init_scale",
            "it must be a number above 0",
        )
        require(self.decay_mode in DECAY_MODES, "decay_mode", "it must be one of " + ", ".join(map(repr, DECAY_MODES)))
        require(self.mnm_target in MNM_TARGETS, "mnm_target", "it must be one of " + ", ".join(map(repr, MNM_TARGETS)))
        require(
            self.leaf_position in LEAF_POSITIONS,
            "leaf_position",
            "it must be one of " + ", ".join(map(repr, LEAF_POSITIONS)),
        )
        for name in ("use_hgat", "span_boundary", "include_uses", "include_site_anchors"):
            require(isinstance(getattr(self, name), bool), name, "it must be True or False")
        names = self.relation_names
        require(
            isinstance(names, list | tuple)
            and all(isinstance(name, str) and name for name in names)
            and len(names) == self.num_relations == len(set(names)),
            "relation_names",
            f"it must hold num_relations = {self.num_relations} different names",
        )
        for name in ("exclude_relations", "edge_relations"):
            given = getattr(self, name)
            require(
                isinstance(given, list | tuple) and set(given) <= set(names),
                name,
                f"it must be a list of names among {', '.join(names)}",
            )
        require(self.type_vocab_size >= 2, "type_vocab_size", "it must be at least 2 (0 for roots, 1 for leaves)")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            "hidden_size",
            f"it must be a multiple of num_attention_heads = {self.num_attention_heads}",
        )
        require(not self.is_decoder and not self.add_cross_attention, "is_decoder", "GraphMERT is an encoder")
        num_needed = self.num_nodes if self.leaf_position == "slot" else self.num_roots
        require(
            self.num_usable_positions >= num_needed,
            "max_position_embeddings",
            f"num_roots = {self.num_roots}, leaves_per_root = {self.leaves_per_root}, leaf_position = {self.leaf_position!r}"
            f" and pad_token_id = {self.pad_token_id} need at least {num_needed + self.pad_token_id + 1}",
        )


GraphMertConfig.register_for_auto_class()

__all__ = ["DEFAULT_RELATION_NAMES", "GraphMertConfig"]
