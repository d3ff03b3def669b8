"""A Jupyter-first workbench for LLMOps: explore in a live panel, freeze the parameters, run the same notebook headlessly.

Modules:

- `llmops_workbench.adapters`: What of a model is trained: all of it, a few weights beside it, or words it has no letters for
- `llmops_workbench.addresses`: Where a store lies, and what to say when it cannot be opened there
- `llmops_workbench.agreements`: Do two raters mean the same thing, and could they agree so well by luck?
- `llmops_workbench.answers`: Whether an answer is right: as a text, as JSON, as SQL
- `llmops_workbench.assertions`: What has to be true of an answer, said as data and checked row by row
- `llmops_workbench.bars`: How a column of a million rows spreads, in a hundredth of a second
- `llmops_workbench.batches`: Prompts that begin alike, read together
- `llmops_workbench.bertscore`: Whether an answer means the same, token by token, as an encoder sees it
- `llmops_workbench.budgets`: No call is made that could cost more than is left
- `llmops_workbench.caches`: A question that was answered is not paid for twice
- `llmops_workbench.catalogue`: Which workflows there are, what each answers and what it takes
- `llmops_workbench.cells`: Values of any kind into columns of few kinds, and no value changed on the way
- `llmops_workbench.charts`: A comparison as pictures: intervals, examples, fronts, slices and curves
- `llmops_workbench.chats`: Who said what, in whatever form a conversation was kept
- `llmops_workbench.checkpoints`: Where a model's name leads, and what is refused unread
- `llmops_workbench.cli`: The same workflows from a terminal and from CI
- `llmops_workbench.columns`: What each column of a dataset can be measured by: numbers, categories, and the measurable sides of text and JSON
- `llmops_workbench.comparison`: Which system is better, by how much, and whether the examples can tell
- `llmops_workbench.completions`: What a model is to the workbench: prompts in, a frame out
- `llmops_workbench.confidence`: Whether a system is right as often as it says, and what its answers took
- `llmops_workbench.congestion`: As many calls at once as the server bears
- `llmops_workbench.contrasts`: Every system against the baseline: differences, intervals, tests and verdicts, from counts alone
- `llmops_workbench.corpus`: What the starter model reads: exercises, documentation, tickets and questions about them, as an endless stream of batches
- `llmops_workbench.costs`: What a token costs, in a table you keep
- `llmops_workbench.counts`: Characters, words and sentences of a column of text
- `llmops_workbench.credentials`: Keys, tokens and passwords that stand in a text, and what only looks like them
- `llmops_workbench.databases`: Answers in SQL, judged by what they bring back
- `llmops_workbench.datasets`: Read once, named by content, split so that nothing leaks
- `llmops_workbench.dialects`: What servers answer, each in its own way
- `llmops_workbench.differences`: What changed from one text to another, in whole words
- `llmops_workbench.display`: One look for results, wherever they are read
- `llmops_workbench.divergence`: How far apart two samples of one column are: five established measures, each with its own threshold
- `llmops_workbench.drift`: What changed, since when, by how much, and which rows show it
- `llmops_workbench.duplicates`: Texts that are the same, and texts that say nearly the same
- `llmops_workbench.embeddings`: Texts as vectors at once, from their own words, or by a model that lies on disk; and the texts most like another
- `llmops_workbench.endpoints`: A model behind an address
- `llmops_workbench.engines`: Where blocks of work are done: here, in processes beside, or on a Ray cluster
- `llmops_workbench.errors`: One line that says what was given, what is allowed and what to do
- `llmops_workbench.escaping`: Text from data and models is shown, never obeyed
- `llmops_workbench.evaluators`: Every metric as a module of Hugging Face's `evaluate`, with the network off
- `llmops_workbench.evidence`: Scored once, asked again as often as you like
- `llmops_workbench.examples`: A prompt, a completion, a task: what a model is trained and judged on
- `llmops_workbench.exports`: A comparison as the table of a paper, a README or a spreadsheet, and as one page that needs nothing else
- `llmops_workbench.feedback`: What people say about a text, a run or an answer: kept as said, and never written over
- `llmops_workbench.findings`: What is wrong with a dataset, as sentences that somebody can act on
- `llmops_workbench.finetuning`: Look before you train, train in a process of its own, read what came of it
- `llmops_workbench.footprint`: How much memory a training needs, known before it is there
- `llmops_workbench.foreign`: Any Python function or `evaluate` module as a metric beside ours
- `llmops_workbench.formats`: The numbers a model computes in, and what a faster format changes
- `llmops_workbench.fronts`: What cannot be had better without paying more
- `llmops_workbench.gains`: What a search for a better prompt found, what it cost, and whether to believe it
- `llmops_workbench.grammars`: Holding a model to a JSON Schema while it writes, and home before its tokens run out
- `llmops_workbench.grids`: A row a call, a score for each model, prompt and task, and nothing dropped
- `llmops_workbench.helpdesk`: A sample of dated tickets whose every trouble is known
- `llmops_workbench.helpdesk_sql`: A small database, and questions whose right queries are known
- `llmops_workbench.identifiers`: Numbers that belong to one person, told by their check digits from numbers that do not
- `llmops_workbench.injection`: How much a text looks like an attack on the model that will read it, and by what
- `llmops_workbench.intervals`: How sure a rate or a mean is when examples are few, or were asked several times
- `llmops_workbench.jinja`: Templates that are programs, in a process where they can do no harm
- `llmops_workbench.jobs`: Long work in a process of its own: it survives the kernel, can be stopped, found again and resumed
- `llmops_workbench.journal`: A metric is safe the moment `append` returns, and nobody waits for the store
- `llmops_workbench.judges`: A model's opinion of an answer, asked for in a form that can be counted, and held against people's
- `llmops_workbench.kept`: A SQLite file that several processes use at once, and that is never believed when it is damaged
- `llmops_workbench.labeling`: Rows to look at, what people said of them, how far they agree, and a dataset of it
- `llmops_workbench.labels`: Labels that contradict one another, and labels that contradict their texts
- `llmops_workbench.languages`: Which language a text is in, and how sure one can be
- `llmops_workbench.library`: Prompts by name, version and alias, whole
- `llmops_workbench.likeness`: How like its reference an answer is, letter by letter and word by word, and how like itself
- `llmops_workbench.lineage`: Which runs and traces used a version of a prompt, and how it scored
- `llmops_workbench.locks`: One holder at a time, on this machine, and never for longer than its process lives
- `llmops_workbench.mapped`: Texts that stay on disk and are looked at through a memory map, in a frame like any other
- `llmops_workbench.marks`: What stands on one pair of axes, drawn by matplotlib
- `llmops_workbench.masks`: Which tokens of an example a model learns, exactly as the trainer will see them
- `llmops_workbench.matching`: What two texts have in common, counted without making a Python object for each word
- `llmops_workbench.material`: What the starter model's exercises are made of: names, codes, things, letters and stories, drawn from a seed
- `llmops_workbench.matrices`: The answers of a grid side by side: which are right, which differ, and what a reader has to look at
- `llmops_workbench.measures`: What a column of scores means, and which way is up
- `llmops_workbench.metric_models`: The models that judge texts, opened once and named by what is in their folder
- `llmops_workbench.metrics`: How near predictions come to references
- `llmops_workbench.models`: One name for a model, wherever it is
- `llmops_workbench.names`: People's names by the company they keep: greetings, signatures, forms, and the rest of the column
- `llmops_workbench.optimization`: A better prompt, if there is one, and an honest word on whether it is better
- `llmops_workbench.options`: What changes the value of a metric
- `llmops_workbench.outbox`: What a person has said is on the disk before the next key is pressed, and in the store soon after
- `llmops_workbench.outcomes`: Who won where, what got worse, and what was done differently
- `llmops_workbench.overlap`: BLEU, chrF, TER and ROUGE from counts that add up
- `llmops_workbench.overview`: What the columns of a dataset hold: their kinds, their commonest values, the keys inside their JSON, their weeks
- `llmops_workbench.pairs`: Which of two answers is better, asked blind and in both orders
- `llmops_workbench.params`: One signature is the form, the parameters cell, the command line and the check
- `llmops_workbench.periods`: Which rows are the reference, which are current, and in which window each one lies
- `llmops_workbench.phrases`: Text written from phrase banks that knows where its facts stand
- `llmops_workbench.pictures`: A plotly figure drawn with neither browser nor network
- `llmops_workbench.pieces`: Where a text may be cut so that its tokens are those of its parts, and how many they are
- `llmops_workbench.pipeline`: Workflows in order, each taking what an earlier one gave, ending in one page
- `llmops_workbench.preparation`: From rows to examples: cleaned, formatted, split so that no prompt is seen twice
- `llmops_workbench.profiling`: What is in the data, what is wrong with it, and which step mends it
- `llmops_workbench.prompting`: Every prompt with every model on the same examples, scored side by side
- `llmops_workbench.prompts`: A wording with its fields, its worked examples and the schema of its answer
- `llmops_workbench.pseudonyms`: A false name for a true one, the same all over the dataset, and no table of who is who
- `llmops_workbench.quality`: Signals that tell a text worth training on from one that is not
- `llmops_workbench.questions`: What models are asked, and what the right answers are
- `llmops_workbench.rankings`: Who stands where, and which places the examples cannot tell apart
- `llmops_workbench.readers`: Files in, frames out, and an account of every row that did not make it
- `llmops_workbench.readiness`: What a fine-tune would meet, seen in seconds and before a byte is trained
- `llmops_workbench.recipes`: Steps in order, as data: checked, applied, and every row accounted for
- `llmops_workbench.records`: What is kept of a run, and in which form
- `llmops_workbench.reflection`: A model reads what went wrong and writes the next instruction
- `llmops_workbench.registry`: Models by name, version and alias, beside the prompts
- `llmops_workbench.repeats`: The same question asked several times: how much answers vary, and whether all of them would do
- `llmops_workbench.report`: What ran, what was found and where it lies, on one page that needs nothing else
- `llmops_workbench.reshaping`: Steps that change what a row is: cut, split, packed, renamed, formatted, copied, made by a model
- `llmops_workbench.rulers`: A column of the reference, measured once; every window is then held against it
- `llmops_workbench.runner`: Run a workflow notebook headlessly: strictly checked before, recorded from the first moment, readable afterwards
- `llmops_workbench.safety`: Personal data in a column, found and blacked out
- `llmops_workbench.schedules`: How long to train, and a learning rate that has come down when the time is over
- `llmops_workbench.schemas`: What an answer has to look like, and whether it does
- `llmops_workbench.seals`: Folders that are whole or absent, whatever moment a process is killed at
- `llmops_workbench.search`: What to try next, what to give up early, and never more than there is to spend
- `llmops_workbench.seeds`: Several tries of one thing: how far they lie apart, and whether that explains the difference
- `llmops_workbench.selection`: Examples to learn from, examples to choose by, and examples that decide in the end
- `llmops_workbench.separation`: Can anything tell two piles of texts apart, and by which words? A classifier with an honest null, in closed form
- `llmops_workbench.sequences`: Examples as the trainer sees them, and the order in which it sees them
- `llmops_workbench.settings`: One plain file that notebooks, the command line and CI share
- `llmops_workbench.shards`: One table in many files, larger than memory if need be, read a piece at a time
- `llmops_workbench.shelf`: An example that was scored once is not scored again
- `llmops_workbench.signals`: One row a text, one column a property: what rows are explored, filtered and prepared by
- `llmops_workbench.significance`: Whether a difference is more than luck: paired resampling, exact tests, and an honest verdict in words
- `llmops_workbench.slices`: Where a system is weak, in a rule that can be said aloud, and not found by looking often
- `llmops_workbench.soft_prompts`: Tokens that stand in no vocabulary, read before every prompt
- `llmops_workbench.sources`: Answers by the name of a run, a prompt, a model, a file or a yardstick
- `llmops_workbench.spaces`: What a search may choose from: lists of choices and ranges of numbers
- `llmops_workbench.spans`: Where something stands in a text, however the text hides it
- `llmops_workbench.splits`: Train, validation and test, such that nothing a model is judged on is what it has seen
- `llmops_workbench.sqlguard`: What a query may do that nobody has read before it runs
- `llmops_workbench.sqlite`: Databases shown to a model, and queries run without trusting them
- `llmops_workbench.starter`: A language model of three million parameters, made from nothing on two cores
- `llmops_workbench.steps`: What can be done to the rows of a dataset, one pure function a step: cleaning, filtering, duplicates, personal data
- `llmops_workbench.store`: Everything that can be seen later: runs, metrics, results, notebooks, prompts and models
- `llmops_workbench.surprise`: How likely a text is to a language model, and what a classifier takes it for
- `llmops_workbench.systems`: Answers to the same examples, whatever gave them, in one form and under a name
- `llmops_workbench.templates`: Text with fields, filled and never evaluated
- `llmops_workbench.text`: A column of text as one buffer of bytes, its hashes, and the damage of a wrong decoding
- `llmops_workbench.tickets`: One help desk ticket: what it says, how its channel dresses it, what a model should make of it
- `llmops_workbench.tokens`: How long a text is for a model, counted without the model, and where to cut it
- `llmops_workbench.topics`: A map of the texts on which what is alike lies together, and names for its regions
- `llmops_workbench.tradeoffs`: What a search found: the front, what each parameter matters for, and what one more point would cost
- `llmops_workbench.training`: What runs in the worker process: the loss of the answers, the trainer, what it reports and what comes out
- `llmops_workbench.trials`: Wordings asked of the same examples, as few of them as it takes to see which fall behind
- `llmops_workbench.twins`: Which rows say what others say: in the same data, or in data a model will be judged on
- `llmops_workbench.units`: Words, lines and word sequences of a column of text, and how much of it repeats
- `llmops_workbench.variants`: A prompt taken apart, and what can be changed in it without a model
- `llmops_workbench.versions`: Which versions of a dataset there are, and what changed from one to another
- `llmops_workbench.views`: A million rows looked at through a few small questions, and the same questions as pandas
- `llmops_workbench.widgets.chart`: A plotly figure on the screen that answers to Python, for the price of its data
- `llmops_workbench.widgets.compare`: Choose a baseline, see who is better, read what changed
- `llmops_workbench.widgets.curves`: Metrics over the steps of training, and any two metrics against each other
- `llmops_workbench.widgets.duel`: Two answers without names: which is better?
- `llmops_workbench.widgets.editor`: A wording, its fields bound to columns, and what a model will read for a real row
- `llmops_workbench.widgets.explore`: The look at a dataset before anybody trains on it
- `llmops_workbench.widgets.feedback`: One row, the answers to choose from, and a key for each
- `llmops_workbench.widgets.fields`: A form out of a signature, and the two small things a browser has to do itself
- `llmops_workbench.widgets.finetune`: Look, launch, watch the curve; stop it, lose the kernel, and find it again
- `llmops_workbench.widgets.following`: Launch it, watch it, stop it; lose the kernel, and find it again
- `llmops_workbench.widgets.home`: The workflows in order, what each answers, and the latest runs, one click away
- `llmops_workbench.widgets.leaderboard`: Who leads, within the intervals
- `llmops_workbench.widgets.map`: The texts as points: those alike lie together, a lasso picks them, a click opens one
- `llmops_workbench.widgets.markup`: HTML that is written in Python and answers to Python
- `llmops_workbench.widgets.matrix`: A row an example, a column a system, and in each cell what that system answered
- `llmops_workbench.widgets.monitor`: What changed, since when, and which rows show it
- `llmops_workbench.widgets.onward`: From rows that somebody picked to the workflow that takes them on
- `llmops_workbench.widgets.optimize`: Watch trials come and go, read what changed, keep the prompt that won
- `llmops_workbench.widgets.panel`: One stage on a screen: a form, a result, and the way back to code
- `llmops_workbench.widgets.parallel`: Systems as lines across parameters and metrics; brush the axes to see which remain
- `llmops_workbench.widgets.prepare`: From rows to training examples, and what became of every row
- `llmops_workbench.widgets.prompt`: Prompts and models on the same examples: what it will cost, what came out, and what went wrong
- `llmops_workbench.widgets.reader`: One row, to be read: as a chat, as JSON, with personal data marked, or beside another
- `llmops_workbench.widgets.recipe`: A list of steps to add to, order, switch off and undo
- `llmops_workbench.widgets.rows`: A table to search, sort, brush, page through and read from, and the difference of two texts word by word
- `llmops_workbench.widgets.runtable`: What differs between systems, and what came of it, side by side
- `llmops_workbench.widgets.slices`: Where a system is unusually weak, in words, and a click away from its examples
- `llmops_workbench.widgets.winloss`: The examples behind a difference, the largest losses first, word by word
- `llmops_workbench.writers`: Rows into a file: read back equal, or safe to open in a spreadsheet
- `llmops_workbench.yardsticks`: Two answers that need no model, to measure models by"""

__version__ = "0.1.0"

import importlib

# Public name -> the module that defines it. Names load on first use (PEP 562), so importing the package costs nothing.
_PUBLIC = {
    "WorkbenchError": "errors",
    "UserError": "errors",
    "load_settings": "settings",
    "read_dataset": "datasets",
    "Dataset": "datasets",
    "write_dataset": "writers",
    "open_store": "store",
    "start_job": "jobs",
    "attach_job": "jobs",
    "load_model": "models",
    "score": "metrics",
    "detect_languages": "languages",
    "find_pii": "safety",
    "find_secrets": "credentials",
    "score_injection": "injection",
    "redact": "safety",
    "pseudonymise": "pseudonyms",
    "find_topics": "topics",
    "TextIndex": "embeddings",
    "profile": "profiling",
    "prepare": "preparation",
    "Prompt": "prompts",
    "run_grid": "prompting",
    "optimize_prompt": "optimization",
    "compare": "comparison",
    "finetune": "finetuning",
    "detect_drift": "drift",
    "preflight": "readiness",
    "label": "labeling",
    "agreement": "labeling",
    "feedback_dataset": "labeling",
    "run_workflow": "runner",
    "run_pipeline": "pipeline",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
