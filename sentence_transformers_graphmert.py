"""GraphMERT as the one module of a sentence-transformers model; travels with a checkpoint.

`SentenceTransformer(directory, trust_remote_code=True)` finds the class by `modules.json`, which
`graphmert.embedding_files.save_for_sentence_transformers` writes.
"""

import torch
from sentence_transformers.base.modules import InputModule

from .embedding_graphmert import check_pooling, pool_windows
from .modeling_graphmert import GraphMertModel
from .processing_graphmert import GraphMertProcessor

# Windows of a batch that go through the model together; one text may have hundreds.
_WINDOWS_AT_ONCE = 64


class GraphMertSentenceEncoder(InputModule):
    """Processor, encoder and pooling: the vectors of `GraphMertModel.encode`.

    `encode_query` reads its texts as words, without a graph; `encode` and `encode_document` as code.

    Args:
        model: the encoder.
        processor: its processor.
        pooling, normalize: as in `GraphMertModel.encode`.
        language: what code is written in; None for texts without a graph.

    Raises:
        ValueError: an unknown pooling, or a processor that is not of this model.
    """

    config_file_name = "sentence_graphmert_config.json"
    config_keys = ["pooling", "normalize", "language"]

    def __init__(
        self,
        model: GraphMertModel,
        processor: GraphMertProcessor,
        pooling: str = "mean",
        normalize: bool = False,
        language: str | None = "python",
    ):
        super().__init__()
        check_pooling(pooling)
        processor.check_config(model.config)
        self.model, self.processor = model, processor
        self.pooling, self.normalize, self.language = pooling, normalize, language

    @property
    def tokenizer(self):
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def get_embedding_dimension(self) -> int:
        """Length of a vector."""
        return self.model.config.hidden_size

    def preprocess(self, inputs, prompt: str | None = None, task: str | None = None, **kwargs) -> dict:
        """Texts to model inputs, (windows, nodes), with `overflow_to_sample_mapping` (windows,)."""
        texts = [prompt + text for text in inputs] if prompt else list(inputs)
        windows = self.processor.read_windows(texts, None if task == "query" else self.language)
        features = self.processor.collate(windows)
        features["overflow_to_sample_mapping"] = torch.tensor([window["text"] for window in windows])
        return features

    def forward(self, features: dict, **kwargs) -> dict:
        """Adds `sentence_embedding`, float (texts, hidden size); and `token_embeddings` where each text is one window."""
        text_of = features["overflow_to_sample_mapping"]
        inputs = {name: features[name] for name in self.processor.model_input_names}
        states, sums, weights = [], [], []
        for start in range(0, len(text_of), _WINDOWS_AT_ONCE):
            part = {name: value[start : start + _WINDOWS_AT_ONCE] for name, value in inputs.items()}
            states.append(self.model(**part).last_hidden_state)
            pooled, weight = pool_windows(states[-1], part, self.pooling)
            sums.append(pooled)
            weights.append(weight)
        num_texts = int(text_of[-1]) + 1
        sums, weights = torch.cat(sums), torch.cat(weights)
        total = sums.new_zeros(num_texts, sums.shape[1]).index_add(0, text_of, sums)
        vectors = total / weights.new_zeros(num_texts).index_add(0, text_of, weights)[:, None]
        features["sentence_embedding"] = torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors
        if num_texts == len(text_of):
            features["token_embeddings"] = torch.cat(states)
        return features

    def save(self, output_path: str, *args, safe_serialization: bool = True, **kwargs) -> None:
        """Save encoder, processor and settings; weights always as safetensors."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: dict | None = None,
        processor_kwargs: dict | None = None,
        **kwargs,
    ) -> "GraphMertSentenceEncoder":
        """Load what `save` or `save_for_sentence_transformers` wrote, from a directory or the Hub."""
        settings = cls.load_config(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        options = {"token": token, "cache_dir": cache_folder, "revision": revision, "subfolder": subfolder}
        options = {name: value for name, value in options.items() if value} | {"local_files_only": local_files_only}
        model_options = {"add_pooling_layer": False, "use_safetensors": True, **(model_kwargs or {})}
        model = GraphMertModel.from_pretrained(model_name_or_path, **options, **model_options)
        processor = GraphMertProcessor.from_pretrained(model_name_or_path, **options, **(processor_kwargs or {}))
        return cls(model, processor, **settings)


__all__ = ["GraphMertSentenceEncoder"]
