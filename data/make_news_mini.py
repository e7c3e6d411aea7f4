"""Make the data set news_mini: Chinese news-like documents in five topics.

Usage: python data/make_news_mini.py [OUTPUT]

Writes train.csv and test.csv (columns text and label, the label as an id) and
label.json (topic name -> id) to OUTPUT, by default data/news_mini.

Each document is composed of sentences from data/sentences, whose slots are
filled from slots.json: about half of them belong to the document's topic, the
others to one or two other topics or to none. A quarter of the sentences of
each file occurs in test documents only and another quarter in training
documents only. The output depends on SEED and the sentences alone.
"""

import csv
import json
import math
import random
import re
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SENTENCES = HERE / "sentences"
TOPICS = {"sports": "体育", "health": "健康", "military": "军事", "education": "教育", "cars": "汽车"}
COMMON = "common"
DOCUMENTS_PER_TOPIC = {"train": 300, "test": 100}
SEED = 9

MEDIAN_SENTENCES = 20
LENGTH_SPREAD = 0.58  # standard deviation of the logarithm of the length
MIN_SENTENCES, MAX_SENTENCES = 4, 80
OWN_SHARE = (0.25, 0.60)
OTHER_SHARE = (0.00, 0.28)
COMMON_LEAD = 0.5  # how often a document begins with a sentence of no topic
OWN_TWICE = 0.35  # how often its own topic has the next two sentences, not just one


class Sentence(NamedTuple):
    source: str  # a key of TOPICS, or COMMON
    template: str
    text: str


class Document(NamedTuple):
    topic: str
    sentences: list[Sentence]

    @property
    def text(self) -> str:
        return "".join(sentence.text for sentence in self.sentences)


Pools = dict[str, list[str]]
Slots = dict[str, list[str]]


def read_pools(rng: random.Random) -> dict[str, Pools]:
    """The templates of each split by source."""
    pools: dict[str, Pools] = {"train": {}, "test": {}}
    for source in [*TOPICS, COMMON]:
        templates = (SENTENCES / f"{source}.txt").read_text(encoding="utf-8").split("\n")
        templates = [template for template in templates if template]
        rng.shuffle(templates)
        quarter = len(templates) // 4
        pools["test"][source] = templates[:-quarter]
        pools["train"][source] = templates[quarter:]
    return pools


def uniform(rng: random.Random, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return low + (high - low) * rng.random()


def count_sentences(rng: random.Random) -> int:
    # The sum of twelve uniforms is nearly normal, so that its exponential has a long tail.
    normal = math.fsum(rng.random() for _ in range(12)) - 6
    count = round(MEDIAN_SENTENCES * math.exp(LENGTH_SPREAD * normal))
    return min(max(count, MIN_SENTENCES), MAX_SENTENCES)


def fill(template: str, slots: Slots, rng: random.Random) -> str:
    used: list[str] = []

    def value(match: re.Match[str]) -> str:
        # {team2} is a second team: no value is used twice in a sentence.
        values = [v for v in slots[match[1].rstrip("2")] if v not in used]
        used.append(rng.choice(values))
        return used[-1]

    return re.sub(r"\{(\w+)\}", value, template)


def compose(topic: str, pools: Pools, slots: Slots, rng: random.Random) -> Document:
    total = count_sentences(rng)
    own = max(2, round(total * uniform(rng, OWN_SHARE)))
    others = [other for other in TOPICS if other != topic]
    rng.shuffle(others)
    others = others[: 1 + rng.randrange(2)]
    # Every other topic stays behind the document's own.
    each = min(own - 1, max(1, round(total * uniform(rng, OTHER_SHARE) / len(others))))
    # The beginning tells less than the whole, yet never nothing.
    first = [topic] * (2 if rng.random() < OWN_TWICE else 1)
    rest = [topic] * (own - len(first)) + [other for other in others for _ in range(each)]
    rest += [COMMON] * max(1, total - own - each * len(others))
    rng.shuffle(rest)
    sources = first + rest
    if rng.random() < COMMON_LEAD:
        sources.remove(COMMON)
        sources.insert(0, COMMON)

    left = {source: list(pools[source]) for source in [topic, *others, COMMON]}
    for templates in left.values():
        rng.shuffle(templates)
    sentences = []
    for source in sources:
        template = left[source].pop()
        sentences.append(Sentence(source, template, fill(template, slots, rng)))
    return Document(topic, sentences)


def make_documents(seed: int = SEED) -> dict[str, list[Document]]:
    rng = random.Random(seed)
    slots = json.loads((SENTENCES / "slots.json").read_text(encoding="utf-8"))
    pools = read_pools(rng)
    splits = {}
    for split, count in DOCUMENTS_PER_TOPIC.items():
        documents = [compose(t, pools[split], slots, rng) for t in TOPICS for _ in range(count)]
        rng.shuffle(documents)
        splits[split] = documents
    return splits


def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    labels = {name: index for index, name in enumerate(TOPICS.values())}
    for split, documents in make_documents().items():
        with open(output / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["text", "label"])
            writer.writerows([d.text, labels[TOPICS[d.topic]]] for d in documents)
    with open(output / "label.json", "w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(labels, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "news_mini")
