"""Compares prompts for the stages by what a model writes with them.

    regenesis run quickstart --until 0/paths --set synthesis.prompts=FILE --set run=NAME
    python -m benchmarks.prompts runs/quickstart runs/NAME --show 5

Every run is one side. It needs the paths of its first round only; all runs should have the same
questions, guidelines and sampling. The columns of the table:

* `question told`, `guideline told`: for how many adaptations the best match among all questions of
  the dataset, or among all guidelines, is their own one. Words and numbers count by their rarity.
  Behind `/` is what guessing would give. An adaptation that fits any question is of no use.
* `adaptation leaks`, `plan leaks`: how many state the right answer.
* `cut`: how many texts of each stage were cut off by the token limit.
* `right`: how many paths are right and ended by themselves, with a 95 % Wilson interval.
* `right per 10,000 tokens`: of all stages, prompts included.
"""
