"""A saved directory loads by the Auto classes in a process that does not have this project."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_model import batch, inputs_of, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from graphmert.modeling_graphmert import (
    GraphMertForMaskedLM,
    GraphMertForPreTraining,
    GraphMertForSequenceClassification,
    GraphMertModel,
)

CLASSES = {
    "AutoModel": GraphMertModel,
    "AutoModelForMaskedLM": GraphMertForMaskedLM,
    "AutoModelForPreTraining": GraphMertForPreTraining,
    "AutoModelForSequenceClassification": GraphMertForSequenceClassification,
}
CODE = "def f(x): return x"

# Runs elsewhere: nothing but torch, transformers and safetensors can be imported.
STRANGER = """
import json, sys

ABSENT = {"graphmert", "datasets", "evaluate", "accelerate", "tree_sitter", "tree_sitter_python", "sklearn", "matplotlib"}

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for name in ABSENT:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(name + " can be imported")
import torch, transformers
torch.set_num_threads(int(sys.argv[4]))
from transformers import AutoConfig, AutoTokenizer

results = {}
for auto_name, folder in json.loads(sys.argv[1]).items():
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = torch.load(folder + "/inputs.pt")
    model = getattr(transformers, auto_name).from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        results[auto_name] = {
            "config": type(config).__name__, "model": type(model).__name__, "relations": config.relation_names,
            "graph": model(**inputs)[0], "plain": model(**tokenizer(sys.argv[3], return_tensors="pt"))[0],
        }
    # What was loaded can be saved again and loaded again.
    model.save_pretrained(folder + "/again")
    again = getattr(transformers, auto_name).from_pretrained(folder + "/again", trust_remote_code=True)
    with torch.no_grad():
        results[auto_name]["again"] = again(**inputs)[0]
torch.save(results, sys.argv[2])
print(sorted(name for name in sys.modules if name.split(".")[0] in ABSENT))
"""


@pytest.fixture
def tokenizer():
    words = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        *dict.fromkeys(CODE.replace("(", " ( ").replace(")", " ) ").split()),
    ]
    base = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    base.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>")
    return PreTrainedTokenizerFast(tokenizer_object=base, cls_token="<s>", sep_token="</s>", **special)


def test_auto_classes_in_a_process_without_the_project(tmp_path, tokenizer):
    inputs = inputs_of(batch())
    expected, folders = {}, {}
    for seed, (auto_name, model_class) in enumerate(CLASSES.items()):
        folder = tmp_path / auto_name
        model = tiny_model(model_class, seed=seed, dtype=torch.float32)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        torch.save(inputs, folder / "inputs.pt")
        with torch.no_grad():
            plain = model(**tokenizer(CODE, return_tensors="pt"))[0]
            expected[auto_name] = {"graph": model(**inputs)[0], "plain": plain}
        folders[auto_name] = str(folder)
        map_in_file = json.loads((folder / "config.json").read_text())["auto_map"]
        assert map_in_file[auto_name] == f"modeling_graphmert.{model_class.__name__}"
        assert {"AutoConfig", *CLASSES} <= set(map_in_file)
    (tmp_path / "elsewhere").mkdir()
    # -I: neither the working directory nor PYTHONPATH is searched.
    run = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            STRANGER,
            json.dumps(folders),
            str(tmp_path / "results.pt"),
            CODE,
            str(torch.get_num_threads()),
        ],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "[]"
    results = torch.load(tmp_path / "results.pt")
    for auto_name, model_class in CLASSES.items():
        result = results[auto_name]
        assert (result["config"], result["model"]) == ("GraphMertConfig", model_class.__name__)
        assert len(result["relations"]) == 5
        for kind in ("graph", "plain"):
            # Where a tensor lies in memory can change the last bit of a product.
            torch.testing.assert_close(result[kind], expected[auto_name][kind], rtol=1e-5, atol=1e-6)
        assert torch.equal(result["again"], result["graph"])
