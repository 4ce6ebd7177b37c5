"""Pre-training and running of retrievers and rankers."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="prop",
        title="PROP: Pre-training with Representative Words Prediction for Ad-hoc Retrieval",
        year=2020,
        arxiv="2010.10137",
        family="retrieval",
        kind="system",
        summary=(
            "Pre-trains a re-ranker from bare documents: of two sampled word sets it must prefer the one "
            "that a smoothed unigram model finds likelier."
        ),
        part="lightformers.pretrain.retrieval.prop:RepresentativeWords",
    ),
    Paper(
        slug="retrieval-pretraining-tasks",
        title="Pre-training Tasks for Embedding-based Large-scale Retrieval",
        year=2020,
        arxiv="2002.03932",
        family="retrieval",
        kind="system",
        summary=(
            "Pre-trains two-tower retrievers with pairs from raw structured text: a sentence and its "
            "context, a lead sentence and a passage, linked pages."
        ),
        part="lightformers.pretrain.retrieval.tasks:PairTasks",
    ),
    Paper(
        slug="b-prop",
        title="B-PROP: Bootstrapped Pre-training with Representative Words Prediction for Ad-hoc Retrieval",
        year=2021,
        arxiv="2104.09791",
        family="retrieval",
        kind="system",
        summary=(
            "Samples the representative words of PROP by BERT's own class-token attention, contrasted with "
            "the collection average, and trains the same BERT."
        ),
        part="lightformers.pretrain.retrieval.b_prop:BootstrappedRepresentativeWords",
    ),
    Paper(
        slug="sea",
        title="Split, Encode and Aggregate for Long Code Search",
        year=2022,
        arxiv="2208.11271",
        family="retrieval",
        kind="system",
        summary=(
            "Splits long code into blocks along its syntax tree, encodes each with an unchanged encoder and "
            "fuses the vectors by a tiny attention."
        ),
        part="lightformers.infer.sea:SplitEncodeAggregate",
    ),
    Paper(
        slug="mamba-retriever",
        title="Mamba Retriever: Utilizing Mamba for Effective and Efficient Dense Retrieval",
        year=2024,
        arxiv="2408.08066",
        family="retrieval",
        kind="system",
        summary=(
            "Embeds queries and passages by the state of a pretrained Mamba at an appended end token and "
            "tunes it by contrast, at cost linear in length."
        ),
        part="lightformers.pretrain.retrieval.mamba_retriever:MambaRetriever",
    ),
)
