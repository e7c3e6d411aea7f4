#!/usr/bin/env bash
# sentence-transformers 6.2.0 with transformers 5.24.0; sentence-transformers 5.3.0 with the same for comparison.
#
# A cross-encoder with one output applies an activation to its logit: the sigmoid, unless the model names another one. One
# expects that to stay with the model when it goes through transformers, as it does to be fine-tuned, merged with an
# adapter, cast to another type or cut into shards: `from_pretrained`, then `save_pretrained`.
#
# sentence-transformers 5.3.0 wrote the name into config.json, whose unknown keys transformers keeps. 6.2.0 writes it into
# config_sentence_transformers.json alone, which transformers neither reads nor writes. So what transformers has saved again
# is read without an error or a warning and answers with the sigmoid of its logits.
#
# A ranking stays as it is. Thresholds on scores, grades of 0 to 5 and probabilities that are averaged with others do not:
# a logit of 4.7 becomes 0.99.
#
# Seen (Python 3.11, Linux):
#   sentence-transformers 5.3.0: Identity -0.0124, saved again by transformers: Identity -0.0124
#   sentence-transformers 6.2.0: Identity -0.0124, saved again by transformers: Sigmoid 0.4969
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check torch==2.13.0 transformers==5.24.0 scikit-learn scipy
cat >saved_again.py <<'EOF'
import sys
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification
from transformers import BertTokenizer

made, own, again = (f"{sys.argv[1]}-{name}" for name in ("made", "own", "again"))
words = "[PAD] [UNK] [CLS] [SEP] [MASK] a query passage of this one".split()
BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(made)
torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BertForSequenceClassification(BertConfig(vocab_size=len(words), num_labels=1, **sizes)).save_pretrained(made)

CrossEncoder(made, device="cpu", activation_fn=torch.nn.Identity()).save_pretrained(own)
AutoModelForSequenceClassification.from_pretrained(own).save_pretrained(again)
AutoTokenizer.from_pretrained(own).save_pretrained(again)
found = []
for folder in (own, again):
    model = CrossEncoder(folder, device="cpu")
    found.append(f"{type(model.activation_fn).__name__} {model.predict([['a query', 'a passage of this query']])[0]:.4f}")
print(", saved again by transformers: ".join(found))
EOF

answers() {
  env/bin/pip install -qq --disable-pip-version-check --no-deps --target "$1" "sentence-transformers==$1"
  found=$(PYTHONPATH=$1 env/bin/python saved_again.py "$1" 2>/dev/null | tail -n 1)
  echo "sentence-transformers $1: $found"
}

answers 5.3.0
with_older=$found
answers 6.2.0
if [[ $with_older == *Identity*Identity* && $found == *Identity*Sigmoid* ]]; then
  echo "seen: what transformers saves again has lost its activation"
else
  echo "no longer seen"
  exit 1
fi
