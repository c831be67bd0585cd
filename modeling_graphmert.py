"""GraphMERT (arXiv 2510.09580): a RoBERTa encoder on leafy chain graphs of code.

`GraphMertModel` is `RobertaModel` with two additions in front of the same layers: H-GAT changes the word embeddings of
leaves, and attention decay goes in as the attention mask. Given no leaves and `decay_mode=None` nothing is left of them.

A batch is rows of nodes. A row is one graph, or, in the packed layout (`graph_ids`), many.

Shape suffixes: B rows, N nodes, G graphs (B unless packed), P nodes of the longest graph, R roots, L leaf slots, M labelled
nodes, H attention heads, D hidden, V vocabulary, C relations.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.models.roberta.modeling_roberta import (
    RobertaClassificationHead,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaLMHead,
    RobertaModel,
    RobertaPreTrainedModel,
)
from transformers.utils import ModelOutput

from .attention_graphmert import GraphSelfAttention, choose_attention
from .batch_indices_graphmert import batch_indices, check_graph_inputs, check_root_distance, values_at_hand
from .configuration_graphmert import GraphMertConfig
from .conversion_graphmert import ConversionReport, convert_roberta
from .embedding_graphmert import CodeEmbeddingMixin
from .graph_layers_graphmert import GraphDecay, HierarchicalGraphAttention, graph_distance
from .head_memory_graphmert import UNUSED, Found, HeadMemory, MemoryHead
from .lm_loss_graphmert import linear_cross_entropy
from .loading_graphmert import CheckedLoading

IGNORE_INDEX = -100
# Each view of the head memory begins with a seventh of the LM head's weight.
MEMORY_GATE_START = -2.0


@dataclass
class GraphMertForPreTrainingOutput(ModelOutput):
    """Output of `GraphMertForPreTraining`.

    Args:
        loss: float (), mlm_weight * (mlm_loss + sbo_loss) + mnm_weight * mnm_loss; None without labels.
        mlm_loss: float (), mean over labelled roots.
        mnm_loss: float (), by `config.mnm_target`: relation_loss, tail_loss, or the average of the two.
        relation_loss: float (), mean over relation labels.
        tail_loss: float (), mean over labelled leaves.
        sbo_loss: float (), span-boundary objective, mean over its targets; None where it is off.
        logits: float (B, N, V), or (M, V) with `sparse_prediction`; None with `fused_loss`.
        label_losses: float (M,), with `fused_loss`: the loss of each labelled node, in row-major order.
        label_predictions: int64 (M,), with `fused_loss`: the likeliest token of each labelled node.
        relation_logits: float (G, R, L, C), 0 at empty slots; G = B unless rows are packed.
        hidden_states, attentions: as in RoBERTa.
    """

    loss: torch.FloatTensor | None = None
    mlm_loss: torch.FloatTensor | None = None
    mnm_loss: torch.FloatTensor | None = None
    relation_loss: torch.FloatTensor | None = None
    tail_loss: torch.FloatTensor | None = None
    sbo_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    label_losses: torch.FloatTensor | None = None
    label_predictions: torch.LongTensor | None = None
    relation_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class SpanBoundaryHead(nn.Module):
    """State of a masked token from the two tokens around its span (SpanBERT, arXiv 1907.10529, sec. 2.2).

    y = f([x_left; x_right; p]), f two layers of Linear, GELU, LayerNorm; p the embedding of the place in the span.
    """

    def __init__(self, config: GraphMertConfig):
        super().__init__()
        self.position_embeddings = nn.Embedding(config.span_boundary_length, config.hidden_size)
        self.dense_in = nn.Linear(3 * config.hidden_size, config.hidden_size)
        self.norm_in = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm_out = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, left_MD: torch.Tensor, right_MD: torch.Tensor, offset_M: torch.Tensor) -> torch.Tensor:
        """(M, D), (M, D), int64 (M,) from 1 -> (M, D)."""
        position_MD = self.position_embeddings(offset_M - 1)
        state_MD = self.norm_in(F.gelu(self.dense_in(torch.cat([left_MD, right_MD, position_MD], dim=-1))))
        return self.norm_out(F.gelu(self.dense_out(state_MD)))


class GraphMertPreTrainedModel(CheckedLoading, RobertaPreTrainedModel):
    """Weights, loading and conversion, common to all GraphMERT classes."""

    config: GraphMertConfig
    config_class = GraphMertConfig
    base_model_prefix = "roberta"
    # It reads no bias, without a word.
    _supports_flash_attn = False
    _supports_flex_attn = True

    conversion_report: ConversionReport | None = None

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, HierarchicalGraphAttention):
            if self.config.hgat_init == "normal":
                init.normal_(module.weight, mean=0.0, std=self.config.hgat_init_scale)
            elif self.config.hgat_init == "identity":
                init.copy_(module.weight, module.scaled_identities(self.config.hgat_init_scale))
            else:
                init.zeros_(module.weight)
            init.ones_(module.direction_gain)
            init.normal_(module.attention, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, HeadMemory):
            init.zeros_(module.projection)
            init.constant_(module.keys, UNUSED)
            for name in ("answers", "votes", "voters"):
                init.zeros_(getattr(module, name))
        elif isinstance(module, MemoryHead):
            init.zeros_(module.weight)
            init.copy_(module.bias, torch.tensor([0.0] + [MEMORY_GATE_START] * (len(module.bias) - 1)))
        elif isinstance(module, GraphDecay):
            init.constant_(module.offset, module.offset_init)

    @classmethod
    def from_roberta(
        cls,
        path_or_id: str,
        *,
        position_init: str = "copy",
        allow_pickle: bool | None = None,
        verbose: bool = True,
        **graph_options,
    ):
        """Build this class from a RoBERTa or CodeBERT checkpoint.

        All weights of the encoder are copied; positions and token types are extended, H-GAT, decay and relation head are
        new. Before a graph is given and with `decay_mode=None`, hidden states and LM logits are the checkpoint's own.

        Args:
            path_or_id: directory or hub id of a checkpoint with model_type "roberta".
            position_init: "copy" repeats the old position rows for the new ones (as Longformer does), "random" draws them.
            allow_pickle: whether `pytorch_model.bin` will do where there is no `model.safetensors` (torch reads it with
                weights_only=True). None: yes for a hub id (`microsoft/codebert-base` has no other file), no for a directory.
            verbose: print the report.
            **graph_options: fields of `GraphMertConfig`.

        Returns:
            A model in evaluation mode, with `model.conversion_report`.

        Raises:
            ValueError: another architecture, an option that contradicts the checkpoint, or no usable weights.

        Example:

            >>> model = GraphMertForPreTraining.from_roberta("microsoft/codebert-base", num_roots=128, leaves_per_root=7)
        """
        model, report = convert_roberta(
            cls, path_or_id, position_init=position_init, allow_pickle=allow_pickle, graph_options=graph_options
        )
        model.conversion_report = report
        if verbose:
            print(report)
        return model


class GraphMertModel(CodeEmbeddingMixin, GraphMertPreTrainedModel, RobertaModel):
    """The encoder: RoBERTa with H-GAT on leaf embeddings and attention decay over graph distances.

    Example:

        >>> model = GraphMertModel(GraphMertConfig())
        >>> states = model(**tokenizer("def f(x): return x", return_tensors="pt")).last_hidden_state
    """

    def __init__(self, config: GraphMertConfig, add_pooling_layer: bool = True):
        config.check()
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        self.hgat = None
        self.decay = None
        if config.use_hgat:
            self.hgat = HierarchicalGraphAttention(
                config.hidden_size, config.num_relations, config.relation_dropout, config.hgat_negative_slope
            )
        self.head_memory = None
        if config.head_memory_keys and config.leaves_per_root:
            sizes = (config.head_memory_keys, config.head_memory_folds, config.head_memory_answers)
            self.head_memory = HeadMemory(config.hidden_size, *sizes)
        if config.decay_mode is not None:
            self.decay = GraphDecay(
                config.num_attention_heads,
                # Roots are at most num_usable_positions - 1 hops apart, two leaves 2 more.
                config.num_usable_positions + 2,
                config.decay_base,
                config.decay_offset_init,
                multiplicative=config.decay_mode == "multiplicative",
            )
        self.leaf_slots = None
        if config.leaf_position == "root_slot" and config.leaves_per_root:
            self.leaf_slots = nn.Embedding(config.leaves_per_root, config.hidden_size)
        for layer in self.encoder.layer:
            # The same parameters, names and starting values as RoBERTa's: only what is computed may differ.
            layer.attention.self.__class__ = GraphSelfAttention
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        root_index: torch.LongTensor | None = None,
        leaf_index: torch.LongTensor | None = None,
        relation_ids: torch.LongTensor | None = None,
        relation_reversed: torch.LongTensor | None = None,
        head_start: torch.LongTensor | None = None,
        head_length: torch.LongTensor | None = None,
        graph_ids: torch.LongTensor | None = None,
        indices: dict[str, torch.LongTensor] | None = None,
        unpacked: bool = False,
        root_distance: torch.Tensor | None = None,
        memory_fold: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple:
        """Encode graphs, or plain token sequences where `root_index` is not given.

        Args:
            input_ids: int64 (B, N); or `inputs_embeds`, float (B, N, D), word embeddings.
            attention_mask: int64 or bool (B, N), 0 on padding and empty slots. Default: no padding.
            token_type_ids: int64 (B, N). Default: 0 for roots, 1 for leaves.
            position_ids: int64 (B, N). Default: by `config.leaf_position`, starting at pad_token_id + 1.
            root_index: int64 (B, N), 0..num_roots-1; a root's own index, a leaf's root.
            leaf_index: int64 (B, N), slot 0..leaves_per_root-1, -1 for a root. Default: all are roots.
            relation_ids: int64 (B, N), -1 none, 0..num_relations-1, `num_relations` for the masked relation.
            relation_reversed: int64 (B, N), 1 where the leaf carries the owner's name. Default: 0.
            head_start, head_length: int64 (B, N), the span of roots that a leaf hangs on, in root indices of its graph.
            graph_ids: int64 (B, N), for rows that hold many graphs: which of the batch's graphs 0..G-1 a node belongs to,
                -1 for padding. The nodes of a graph are neighbours, roots first; nodes attend within their graph only.
                Default: each row is one graph.
            indices: what `batch_indices` makes of the batch; with it nothing waits for the device. Default: made here.
            unpacked: give the states of packed rows by graph, (G, P, D), with 0 where a graph has fewer than P nodes.
            root_distance: int (G, R, R), shortest paths between the roots of each graph where they have edges beside the
                chain's; 0 on the diagonal alone, at most num_roots - 1. For the decay; not with flex_attention. Default:
                the chain's.
            memory_fold: int64 (B, N), for windows of training projects: the fold of the node's project, which the head
                memory leaves out; -1 for none. Default: nothing is left out.
            **kwargs: `output_attentions`, `output_hidden_states`, `return_dict`, as in RoBERTa.

        Returns:
            As `RobertaModel`: last_hidden_state (B, N, D), pooler_output (G, D).

        Raises:
            ValueError: more nodes than positions; graph inputs that contradict each other or the configuration (their values
                are checked on the CPU only: on other devices the check would wait for the device in every step).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        shape = input_ids.shape if input_ids is not None else inputs_embeds.shape[:2]
        check_graph_inputs(
            self.config, shape, root_index, leaf_index, relation_ids, head_start, head_length, graph_ids
        )
        check_root_distance(self.config, shape, root_index, graph_ids, root_distance)
        nodes = found = None
        if root_index is not None:
            leaf_index = torch.full_like(root_index, -1) if leaf_index is None else leaf_index
            real = _real_nodes(root_index, attention_mask, graph_ids)
            if indices is None:
                given = dict(root_index=root_index, leaf_index=leaf_index, attention_mask=real, graph_ids=graph_ids)
                spans = dict(relation_ids=relation_ids, head_start=head_start, head_length=head_length)
                reads_heads = self.hgat is not None or self.head_memory is not None
                indices = _made_here({**given, **(spans if reads_heads else {})}, self.config.num_relations)
            nodes = indices["graph_nodes"] if graph_ids is not None else None
            is_leaf = (leaf_index >= 0) & real
            token_ids = input_ids
            if inputs_embeds is None:
                inputs_embeds, input_ids = self.embeddings.word_embeddings(input_ids), None
            reverse = torch.zeros_like(root_index) if relation_reversed is None else relation_reversed
            if self.hgat is not None and relation_ids is not None:
                places = (indices[name] for name in ("leaf_nodes", "leaf_grid", "head_pairs"))
                inputs_embeds = self.hgat(inputs_embeds, reverse, *places)
            if self.head_memory is not None and relation_ids is not None:
                if token_ids is None:
                    raise ValueError("head_memory_keys needs input_ids: the memory looks up heads by their tokens.")
                asked = dict(root_index=root_index, relation_ids=relation_ids, relation_reversed=reverse)
                asked |= dict(head_start=head_start, head_length=head_length)
                places = (indices[name] for name in ("leaf_nodes", "head_pairs"))
                found = self.head_memory.look_up(token_ids, asked, *places, memory_fold)
                inputs_embeds = self.head_memory(inputs_embeds, self.embeddings.word_embeddings.weight, found)
            if self.leaf_slots is not None:
                inputs_embeds = inputs_embeds + self.leaf_slots(leaf_index.clamp(min=0)) * is_leaf[:, :, None]
            token_type_ids = is_leaf.long() if token_type_ids is None else token_type_ids
            if position_ids is None:
                position_ids = self._graph_positions(root_index, leaf_index, real)
        attention_mask, graph_attention = choose_attention(
            self.config,
            self.decay,
            self.embeddings.word_embeddings.weight,
            shape,
            attention_mask,
            root_index,
            leaf_index,
            graph_ids,
            nodes,
            root_distance,
        )
        if graph_attention is not None:
            kwargs["graph_attention"] = graph_attention
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if nodes is not None:
            self._by_graph(outputs, nodes, unpacked)
        if found is not None and hasattr(outputs, "last_hidden_state"):
            # For the head that names tails.
            outputs.found = found
        return outputs

    def _by_graph(self, outputs, nodes_GP, unpacked: bool) -> None:
        """Give the outputs of packed rows what belongs to graphs and not to rows."""
        if not hasattr(outputs, "last_hidden_state"):
            raise ValueError("packed rows (graph_ids) need return_dict=True.")
        states_SD = outputs.last_hidden_state.flatten(0, 1)
        if self.pooler is not None:
            outputs.pooler_output = self.pooler(states_SD[nodes_GP[:, :1]])
        if unpacked:
            states_GPD = states_SD[nodes_GP.clamp(min=0)]
            outputs.last_hidden_state = states_GPD.masked_fill((nodes_GP < 0)[:, :, None], 0.0)

    def _graph_positions(self, root_index, leaf_index, real):
        """Position ids of nodes: RoBERTa's offset, padding at the padding row."""
        config = self.config
        position = root_index
        if config.leaf_position == "slot":
            slot = config.num_roots + config.leaves_per_root * root_index + leaf_index
            position = torch.where(leaf_index >= 0, slot, root_index)
        return torch.where(real, position + config.pad_token_id + 1, config.pad_token_id)


@torch.compiler.disable
def _made_here(inputs: dict[str, torch.Tensor | None], num_relations: int) -> dict[str, torch.Tensor]:
    """`batch_indices`, outside of compiled graphs: its sizes depend on the data."""
    return batch_indices({name: value for name, value in inputs.items() if value is not None}, num_relations)


def _real_nodes(root_index, attention_mask, graph_ids) -> torch.Tensor:
    """Which nodes are no padding: bool (B, N)."""
    real = torch.ones_like(root_index) if attention_mask is None else attention_mask
    return real.to(torch.bool) if graph_ids is None else real.to(torch.bool) & (graph_ids >= 0)


def _leaf_nodes(leaf_index, attention_mask, states_BND) -> torch.Tensor:
    """Which nodes are leaves that exist: bool (B, N)."""
    if leaf_index is None:
        return torch.zeros(states_BND.shape[:2], dtype=torch.bool, device=states_BND.device)
    return leaf_index >= 0 if attention_mask is None else (leaf_index >= 0) & attention_mask.to(torch.bool)


def _upcast(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _masked_mean(losses: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """Mean of the selected losses; exactly 0, with a gradient of 0, where none is selected."""
    return torch.where(selected, losses, 0.0).sum() / selected.sum().clamp(min=1)


class GraphMertForMaskedLM(GraphMertPreTrainedModel, RobertaForMaskedLM):
    """GraphMERT with RoBERTa's LM head, tied to the word embeddings."""

    def __init__(self, config: GraphMertConfig):
        RobertaPreTrainedModel.__init__(self, config)
        self.roberta = GraphMertModel(config, add_pooling_layer=False)
        self.lm_head = RobertaLMHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        root_index: torch.LongTensor | None = None,
        leaf_index: torch.LongTensor | None = None,
        relation_ids: torch.LongTensor | None = None,
        relation_reversed: torch.LongTensor | None = None,
        head_start: torch.LongTensor | None = None,
        head_length: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput | tuple:
        """As `RobertaForMaskedLM.forward`, with the graph inputs of `GraphMertModel.forward`."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            root_index=root_index,
            leaf_index=leaf_index,
            relation_ids=relation_ids,
            relation_reversed=relation_reversed,
            head_start=head_start,
            head_length=head_length,
            **kwargs,
        )


class GraphMertForSequenceClassification(GraphMertPreTrainedModel, RobertaForSequenceClassification):
    """GraphMERT with RoBERTa's classification head on the state of the first root."""

    def __init__(self, config: GraphMertConfig):
        RobertaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.config = config
        self.roberta = GraphMertModel(config, add_pooling_layer=False)
        self.classifier = RobertaClassificationHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        root_index: torch.LongTensor | None = None,
        leaf_index: torch.LongTensor | None = None,
        relation_ids: torch.LongTensor | None = None,
        relation_reversed: torch.LongTensor | None = None,
        head_start: torch.LongTensor | None = None,
        head_length: torch.LongTensor | None = None,
        graph_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput | tuple:
        """As `RobertaForSequenceClassification.forward`, with the graph inputs of `GraphMertModel.forward`; labels (G,)."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            root_index=root_index,
            leaf_index=leaf_index,
            relation_ids=relation_ids,
            relation_reversed=relation_reversed,
            head_start=head_start,
            head_length=head_length,
            graph_ids=graph_ids,
            # The head reads each graph's first root.
            unpacked=graph_ids is not None,
            **kwargs,
        )


class GraphMertForPreTraining(GraphMertPreTrainedModel):
    """GraphMERT with its two objectives: masked language modelling on roots, masked node modelling on leaves.

    Example:

        >>> output = GraphMertForPreTraining(GraphMertConfig())(**batch)
        >>> output.loss.backward()
    """

    _tied_weights_keys = RobertaForMaskedLM._tied_weights_keys

    def __init__(self, config: GraphMertConfig):
        super().__init__(config)
        self.roberta = GraphMertModel(config, add_pooling_layer=False)
        self.lm_head = RobertaLMHead(config)
        self.relation_head = nn.Linear(config.hidden_size, config.num_relations)
        self.span_boundary_head = SpanBoundaryHead(config) if config.span_boundary else None
        has_memory = self.roberta.head_memory is not None
        self.memory_head = MemoryHead(config.hidden_size) if has_memory else None
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.lm_head.decoder = new_embeddings

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        root_index: torch.LongTensor | None = None,
        leaf_index: torch.LongTensor | None = None,
        relation_ids: torch.LongTensor | None = None,
        relation_reversed: torch.LongTensor | None = None,
        head_start: torch.LongTensor | None = None,
        head_length: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        relation_labels: torch.LongTensor | None = None,
        span_left: torch.LongTensor | None = None,
        span_right: torch.LongTensor | None = None,
        span_offset: torch.LongTensor | None = None,
        graph_ids: torch.LongTensor | None = None,
        indices: dict[str, torch.LongTensor] | None = None,
        sparse_prediction: bool = False,
        fused_loss: bool = False,
        return_dict: bool | None = None,
        **kwargs,
    ) -> GraphMertForPreTrainingOutput | tuple:
        """Losses and predictions of one batch.

        Args:
            labels: int64 (B, N), token ids to predict on roots (MLM) and leaves (MNM of tails), -100 elsewhere.
            relation_labels: int64 (B, N), relation ids on the first leaf of each masked triple, -100 elsewhere.
            span_left, span_right: int64 (B, N), columns of the row around a masked root's span (span-boundary objective).
            span_offset: int64 (B, N), 1-based place in the span, 0 where there is nothing to predict.
            sparse_prediction: run the LM head on labelled nodes only; `logits` is (M, V) in row-major order of
                `labels != -100`.
            fused_loss: give `label_losses` and `label_predictions` in place of `logits`, which are then never in memory all
                at once; the same losses and gradients in less time. For training.
            All others: as in `GraphMertModel.forward`.

        Returns:
            `GraphMertForPreTrainingOutput`.

        Raises:
            ValueError: as in `GraphMertModel.forward`; labels outside their range (CPU only).
        """
        for name, asked in (("sparse_prediction", sparse_prediction), ("fused_loss", fused_loss)):
            if asked and labels is None:
                raise ValueError(f"{name}=True needs labels: they say where to predict.")
        self._check_labels(labels, relation_labels)
        outputs = self.roberta(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            root_index=root_index,
            leaf_index=leaf_index,
            relation_ids=relation_ids,
            relation_reversed=relation_reversed,
            head_start=head_start,
            head_length=head_length,
            graph_ids=graph_ids,
            indices=indices,
            return_dict=True,
            **kwargs,
        )
        states_BND = outputs.last_hidden_state
        is_leaf_BN = _leaf_nodes(leaf_index, attention_mask, states_BND)
        relation_logits_BNC = self.relation_head(states_BND)
        rows_M = None
        if labels is not None:
            known = indices is not None and "labelled_nodes" in indices
            rows_M = indices["labelled_nodes"] if known else (labels != IGNORE_INDEX).flatten().nonzero().squeeze(1)
        logits, losses_M, predictions_M = self._predict_labels(
            states_BND, labels, rows_M, sparse_prediction, fused_loss, getattr(outputs, "found", None)
        )
        losses = {}
        if labels is not None or relation_labels is not None:
            spans = (span_left, span_right, span_offset)
            losses = self._losses(
                states_BND, losses_M, relation_logits_BNC, rows_M, is_leaf_BN, labels, relation_labels, spans
            )
        output = GraphMertForPreTrainingOutput(
            **losses,
            logits=logits,
            label_losses=losses_M if fused_loss else None,
            label_predictions=predictions_M,
            relation_logits=self._canonical_slots(
                relation_logits_BNC, root_index, leaf_index, is_leaf_BN, graph_ids, indices
            ),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _predict_labels(
        self, states_BND, labels, rows_M, sparse_prediction, fused_loss, found: Found | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Logits as asked for, losses of the labelled nodes (M,), and their likeliest tokens with `fused_loss`."""
        labels_M = None if labels is None else labels.flatten()[rows_M]
        if fused_loss:
            # `RobertaLMHead` without its decoder.
            head, states_MD = self.lm_head, states_BND.flatten(0, 1).index_select(0, rows_M)
            transformed_MD = head.layer_norm(F.gelu(head.dense(states_MD)))
            losses_M, predictions_M = self._label_losses(transformed_MD, labels_M)
            if found is not None:
                answers, shares = found.at(rows_M, states_BND.shape[:2].numel())
                given, _ = self.memory_head.gates(states_MD, shares)
                decoder = (head.decoder.weight, head.decoder.bias)
                predictions_M = self.memory_head.mix_predictions(
                    transformed_MD, *decoder, losses_M, labels_M, predictions_M, answers, given
                )
                losses_M = self.memory_head.mix_losses(losses_M, labels_M, answers, given)
            return None, losses_M, predictions_M
        if sparse_prediction:
            logits = logits_MV = self._name_tails(states_BND, rows_M, found)
        else:
            logits = self.lm_head(states_BND)
            if found is not None:
                mixed = self._name_tails(states_BND, found.leaf_nodes, found)
                logits = logits.to(mixed.dtype).flatten(0, 1).index_copy(0, found.leaf_nodes, mixed).view_as(logits)
            logits_MV = None if labels is None else logits.flatten(0, 1).index_select(0, rows_M)
        losses_M = None if labels is None else F.cross_entropy(_upcast(logits_MV), labels_M, reduction="none")
        return logits, losses_M, None

    def _name_tails(self, states_BND, nodes_X, found: Found | None) -> torch.Tensor:
        """Logits of some nodes, (X, V); at leaves mixed with what is known of their heads."""
        states_XD = states_BND.flatten(0, 1).index_select(0, nodes_X)
        logits_XV = self.lm_head(states_XD)
        if found is None:
            return logits_XV
        answers, shares = found.at(nodes_X, states_BND.shape[:2].numel())
        return self.memory_head.mix_logits(logits_XV, answers, *self.memory_head.gates(states_XD, shares))

    def _label_losses(self, transformed_MD, labels_M):
        decoder = self.lm_head.decoder
        return linear_cross_entropy(transformed_MD, decoder.weight, decoder.bias, labels_M)

    def _losses(self, states_BND, losses_M, relation_logits_BNC, rows_M, is_leaf_BN, labels, relation_labels, spans):
        """The fields of the output that are losses."""
        config = self.config
        # A product with 0 keeps the gradient's graph whole where a batch has no targets of one kind: processes that train
        # together must agree on which parameters take part.
        zero = 0.0 * (_upcast(relation_logits_BNC).sum() + _upcast(states_BND).sum())
        mlm_loss = tail_loss = relation_loss = text_loss = zero
        losses = {}
        if labels is not None:
            is_leaf_M = is_leaf_BN.flatten()[rows_M]
            text_loss = mlm_loss = zero + _masked_mean(losses_M, ~is_leaf_M)
            tail_loss = zero + _masked_mean(losses_M, is_leaf_M)
        if relation_labels is not None:
            labels_M = relation_labels.flatten()
            logits_MC = _upcast(relation_logits_BNC).flatten(0, 1)
            losses_M = F.cross_entropy(logits_MC, labels_M, ignore_index=IGNORE_INDEX, reduction="none")
            relation_loss = zero + _masked_mean(losses_M, labels_M != IGNORE_INDEX)
        if self.span_boundary_head is not None:
            losses["sbo_loss"] = zero
            if labels is not None:
                if any(span is None for span in spans):
                    raise ValueError("span_boundary=True needs span_left, span_right and span_offset beside labels.")
                losses["sbo_loss"] = zero + self._span_boundary_loss(states_BND, labels, rows_M, *spans)
            text_loss = mlm_loss + losses["sbo_loss"]
        choices = {"relation": relation_loss, "tail": tail_loss, "both": (relation_loss + tail_loss) / 2}
        mnm_loss = choices[config.mnm_target]
        losses.update(mlm_loss=mlm_loss, mnm_loss=mnm_loss, relation_loss=relation_loss, tail_loss=tail_loss)
        losses["loss"] = config.mlm_weight * text_loss + config.mnm_weight * mnm_loss
        return losses

    def _canonical_slots(self, logits_BNC, root_index, leaf_index, is_leaf_BN, graph_ids, indices):
        """Logits of leaves at their canonical slots, (G, R, L, C); nodes of any layout know where they belong."""
        num_roots, num_leaves = self.config.num_roots, self.config.leaves_per_root
        num_graphs, num_relations, device = logits_BNC.shape[0], logits_BNC.shape[-1], logits_BNC.device
        graph_BN = torch.arange(num_graphs, device=device)[:, None]
        if graph_ids is not None:
            # Counting the graphs waits for the device; who gave indices has counted them.
            num_graphs = int(graph_ids.max()) + 1 if indices is None else indices["graph_nodes"].shape[0]
            graph_BN = graph_ids
        # The last slot takes what is no leaf, and is cut off.
        num_slots = num_graphs * num_roots * num_leaves
        slots = logits_BNC.new_zeros(num_slots + 1, num_relations)
        if leaf_index is not None:
            slot_BN = (graph_BN * num_roots + root_index) * num_leaves + leaf_index
            slot_BN = torch.where(is_leaf_BN, slot_BN, num_slots)
            slots = slots.scatter(0, slot_BN.view(-1, 1).expand(-1, num_relations), logits_BNC.flatten(0, 1))
        return slots[:-1].view(num_graphs, num_roots, num_leaves, num_relations)

    def _span_boundary_loss(self, states_BND, labels, rows_M, span_left, span_right, span_offset):
        """Mean loss of predicting masked roots from the ends of their spans (SpanBERT sec. 2.2)."""
        states, offset_M = states_BND.flatten(0, 1), span_offset.flatten()[rows_M]
        # Labels on leaves have no span; they are computed along, and left out of the mean.
        has_span_M = offset_M > 0
        first_column_M = rows_M // states_BND.shape[1] * states_BND.shape[1]
        left_M, right_M = (span.flatten()[rows_M].clamp(min=0) + first_column_M for span in (span_left, span_right))
        predicted_MD = self.span_boundary_head(
            states.index_select(0, left_M),
            states.index_select(0, right_M),
            offset_M.clamp(min=1, max=self.config.span_boundary_length),
        )
        losses_M, _ = self._label_losses(predicted_MD, labels.flatten()[rows_M])
        return _masked_mean(losses_M, has_span_M)

    def _check_labels(self, labels, relation_labels) -> None:
        for name, value, size in (
            ("labels", labels, self.config.vocab_size),
            ("relation_labels", relation_labels, self.config.num_relations),
        ):
            if value is None or value.numel() == 0 or not values_at_hand(value):
                continue
            found = torch.stack(value.masked_fill(value == IGNORE_INDEX, 0).aminmax()).tolist()
            wrong = [number for number in found if not 0 <= number < size]
            if wrong:
                raise ValueError(
                    f"{name} holds {wrong[0]}, but the model tells {size} classes apart (or -100 for none)."
                )


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part of a model, tied ones once, and "total".

    Example:

        >>> parameter_counts(GraphMertForPreTraining(GraphMertConfig()))["total"]
        132833649
    """
    parts = (
        ("word embeddings", "word_embeddings"),
        ("position embeddings", "position_embeddings"),
        ("H-GAT", "hgat."),
        ("decay", "decay."),
        ("leaf slots", "leaf_slots."),
        ("head memory", "head_memory."),
        ("memory head", "memory_head."),
        ("encoder layers", "encoder."),
        ("embeddings, other", "embeddings."),
        ("LM head", "lm_head."),
        ("relation head", "relation_head."),
        ("span-boundary head", "span_boundary_head."),
    )
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        span_boundary = "span_boundary_head." in name
        part = "span-boundary head" if span_boundary else next((p for p, key in parts if key in name), "other heads")
        counts[part] = counts.get(part, 0) + parameter.numel()
    counts["total"] = sum(counts.values())
    return counts


GraphMertModel.register_for_auto_class("AutoModel")
GraphMertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
GraphMertForPreTraining.register_for_auto_class("AutoModelForPreTraining")
GraphMertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "ConversionReport",
    "GraphMertForMaskedLM",
    "GraphMertForPreTraining",
    "GraphMertForPreTrainingOutput",
    "GraphMertForSequenceClassification",
    "GraphMertModel",
    "GraphMertPreTrainedModel",
    "graph_distance",
    "parameter_counts",
]
