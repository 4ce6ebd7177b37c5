"""Recipes for language models of one language or field."""

from __future__ import annotations

from lightformers.papers.record import Paper

PAPERS = (
    Paper(
        slug="openmed-ner",
        title=(
            "OpenMed NER: Open-Source, Domain-Adapted State-of-the-Art Transformers for Biomedical NER "
            "Across 12 Public Datasets"
        ),
        year=2025,
        arxiv="2508.01630",
        family="domain",
        kind="system",
        summary=(
            "Adapts encoders to biomedical text by masked-language-model LoRA, then fine-tunes LoRA adapters "
            "and a tagging head per data set and keeps the best backbone."
        ),
        part="lightformers.pretrain.recipes.openmed_ner:OpenMedNER",
    ),
    Paper(
        slug="lightweight-clinical",
        title="Lightweight Transformers for Clinical Natural Language Processing",
        year=2023,
        arxiv="2302.04725",
        family="domain",
        kind="system",
        summary=(
            "Makes five compact clinical encoders from notes, either by continuing a small biomedical model "
            "or by distilling a clinical BERT into smaller shapes."
        ),
        part="lightformers.pretrain.recipes.lightweight_clinical:LightweightClinical",
    ),
    Paper(
        slug="budgetlongformer",
        title="BudgetLongformer: Can we Cheaply Pretrain a SotA Legal Language Model From Scratch?",
        year=2022,
        arxiv="2211.17135",
        family="domain",
        kind="system",
        summary=(
            "Pre-trains long-input legal encoders from scratch on a small budget by replaced-token "
            "detection, whose loss covers every position."
        ),
        part="lightformers.pretrain.recipes.budgetlongformer:BudgetLongformer",
    ),
    Paper(
        slug="gottbert",
        title="GottBERT: a pure German Language Model",
        year=2020,
        arxiv="2012.02110",
        family="domain",
        kind="system",
        summary=(
            "Pre-trains a RoBERTa from scratch on the web text of one language, German, with and without "
            "filtering, and sets it against multilingual models."
        ),
        part="lightformers.pretrain.recipes.gottbert:GottBERT",
    ),
    Paper(
        slug="llm-teacher-student",
        title=(
            "LLM Teacher-Student Framework for Text Classification With No Manually Annotated Data: A Case "
            "Study in IPTC News Topic Classification"
        ),
        year=2024,
        arxiv="2411.19638",
        family="domain",
        kind="system",
        summary=(
            "Has a large prompted model label news texts in several languages and fine-tunes a small encoder "
            "on them; measures how many labels are needed."
        ),
        part="lightformers.pretrain.recipes.llm_teacher_student:TeacherLabels",
    ),
    Paper(
        slug="tunbert",
        title="TunBERT: Pretrained Contextualized Text Representation for Tunisian Dialect",
        year=2021,
        arxiv="2111.13138",
        family="domain",
        kind="system",
        summary=(
            "Pre-trains BERT from scratch for Tunisian dialect on half a million noisy web sentences, to see "
            "whether so little text suffices."
        ),
        part="lightformers.pretrain.recipes.tunbert:TunBERT",
    ),
    Paper(
        slug="term-embeddings",
        title=(
            "Distributional semantic modeling: a revised technique to train term/word vector space models "
            "applying the ontology-related approach"
        ),
        year=2020,
        arxiv="2003.03350",
        family="domain",
        kind="system",
        summary=(
            "Extracts terms of one word or several, rewrites the corpus with each term as one token, trains "
            "word vectors on it and draws neighbourhood maps."
        ),
        part="lightformers.pretrain.term_embeddings:TermEmbeddings",
    ),
    Paper(
        slug="bioformer",
        title="Bioformer: an efficient transformer language model for biomedical text mining",
        year=2023,
        arxiv="2302.01588",
        family="domain",
        kind="system",
        summary=(
            "Pre-trains compact biomedical BERTs with an in-domain vocabulary, and compares eight wide "
            "layers with sixteen narrow ones of equal size."
        ),
        part="lightformers.pretrain.recipes.bioformer:Bioformer",
    ),
    Paper(
        slug="spanish-trocr",
        title="Spanish TrOCR: Leveraging Transfer Learning for Language Adaptation",
        year=2024,
        arxiv="2407.06950",
        family="domain",
        kind="system",
        summary=(
            "Adapts an English text-image reader to Spanish with synthetic document crops only, and compares "
            "a Spanish decoder with plain fine-tuning."
        ),
        part="lightformers.pretrain.recipes.spanish_trocr:SpanishTrOCR",
    ),
    Paper(
        slug="bertu",
        title=(
            "Pre-training Data Quality and Quantity for a Low-Resource Language: New Corpus and BERT Models "
            "for Maltese"
        ),
        year=2022,
        arxiv="2205.10517",
        family="domain",
        kind="system",
        summary=(
            "Studies a language unknown to multilingual BERT, Maltese: from scratch or continued, "
            "encyclopaedia or mixed text, and how much of it."
        ),
        part="lightformers.pretrain.recipes.bertu:BERTu",
    ),
    Paper(
        slug="clinical-longformer",
        title="Clinical-Longformer and Clinical-BigBird: Transformers for long clinical sequences",
        year=2022,
        arxiv="2201.11838",
        family="domain",
        kind="system",
        summary=(
            "Makes long-document clinical encoders: converts a short encoder to sparse attention over 4096 "
            "tokens and continues masked training on notes."
        ),
        part="lightformers.compress.long:ToLong",
    ),
    Paper(
        slug="legalturk",
        title="LegalTurk Optimized BERT for Multi-Label Text Classification and NER",
        year=2024,
        arxiv="2407.00648",
        family="domain",
        kind="system",
        summary=(
            "Pre-trains BERT on Turkish legal text with the sentence-pair task swapped or dropped and masks "
            "filled with tokens of high TF-IDF."
        ),
        part="lightformers.pretrain.recipes.legalturk:LegalTurk",
    ),
    Paper(
        slug="spanish-biomedical",
        title=(
            "Biomedical and Clinical Language Models for Spanish: On the Benefits of Domain-Specific "
            "Pretraining in a Mid-Resource Scenario"
        ),
        year=2021,
        arxiv="2109.03570",
        family="domain",
        kind="system",
        summary=(
            "Studies biomedical pre-training for Spanish: word or token masking, vocabulary size, and "
            "clinical text mixed in, judged by entity recognition."
        ),
        part="lightformers.pretrain.recipes.spanish_biomedical:SpanishBiomedical",
    ),
)
