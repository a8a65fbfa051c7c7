r"""The published architecture, objective and optimiser: ResNet-50 + BERT-base, batch 128, five epochs of pairs.

Every other config starts from this one and states only what differs. Run:

    python launch.py --config=configs/afloc.py --config.data.raw=FOLDER --workdir=runs/afloc

FOLDER is read by the builder `pairs`; other data: --config.data.dataset=NAME --config.data.directory=DATA.
Three defaults are not the published run's: the towers start at random and a vocabulary is learned (there: ImageNet
and Bio_ClinicalBERT), all pairs of a batch are contrasted, and batch statistics are those of the batch (there: 64,
half a batch a device). All three as published:

    python launch.py --config=configs/afloc.py --config.data.raw=FOLDER --workdir=runs/published \
        --config.init_from="('resnet50.pth', 'Bio_ClinicalBERT/')" \
        --config.loss.contrast_group=64 --config.model.image.statistics_group=64
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "afloc"  # appears in the report and the model card
    config.seed = 1  # parameters, shuffling and sentence sampling all derive from it

    config.data = data = ConfigDict()
    data.dataset = "pairs"  # builder in data_pipelines/builders
    data.directory = "data"  # where prepared records live (built there first if `raw` is given and they are absent)
    data.raw = ""  # raw files of the data set; empty: records must be prepared already (phantom needs none)
    data.builder = ConfigDict()  # keyword arguments of the builder, e.g. sizes and split fractions
    data.train_split = "train"
    data.validation_split = "validation"
    # subset: random non-empty subset in random order; impression: keep the impression, sample the findings; all
    data.sentences = "subset"
    data.augment = False  # True: small random shifts, scales and exposures (never flips: reports name sides)
    data.max_tokens = 97  # token slots per report; longer reports are cut
    data.workers = 0  # Grain worker processes; 0 reads in threads of this process

    config.model = model = ConfigDict()
    model.projection_dim = 768  # D, the width in which image regions and text units meet
    model.normalize = False  # L2-normalise every embedding

    model.image = image = ConfigDict()
    image.backbone = "resnet50"  # resnet18|34|50|101|152, resnext50|101, densenet121|161|169, resnet_small
    image.input_size = 299  # side to which the square is resized inside the model, pixels
    image.options = ConfigDict()  # further keyword arguments of the backbone (widths, strides, stages of the small one)
    # images whose batch statistics are taken together, in order (published: 64, half a batch a device); 0: the batch
    image.statistics_group = 0
    image.center = False  # batch-normalise the projected features (beyond the published recipe)
    image.freeze = False  # keep the image encoder as initialised

    model.text = text = ConfigDict()
    text.bert = ConfigDict()  # fields of a Hugging Face BertConfig; BERT-base where not given
    text.tokenizer = ""  # folder with vocab.txt; empty: a vocabulary is learned from the training reports
    text.last_layers = 4  # hidden states that are combined
    text.merge_layers = "sum"  # sum|mean over those layers
    text.merge_pieces = "sum"  # sum|mean of word pieces into words
    text.context = "report"  # report|sentence (each sentence is read alone: beyond the published recipe)
    text.freeze = False  # keep the text encoder as initialised

    # Weights to start from; empty: random initialisation. A model folder, or a path (or a tuple of paths) to a
    # checkpoint, a ResNet or DenseNet, a Hugging Face BERT folder or hub name: docs/weights.md
    config.init_from = FieldReference("", field_type=object)

    config.loss = loss = ConfigDict()
    loss.weights = ConfigDict({"report": 1.0, "sentence": 1.0, "word": 1.0})  # 0 switches a level off
    loss.attention_temperature = 4.0  # temp1: sharpness of the softmax over regions
    loss.pooling_temperature = 5.0  # temp2: sharpness of the sum over text units
    loss.contrast_temperature = 10.0  # temp3: scale of similarities in the cross entropies
    loss.region_pooling = "attention"  # attention|logsumexp (a soft maximum over regions: beyond the published recipe)
    loss.region_sharpness = 10.0  # of that soft maximum
    loss.contrast_unit = "caption"  # caption|unit (each unit finds its own image: beyond the published recipe)
    loss.contrast_group = 0  # pairs contrasted with each other (published: 64); 0: the whole global batch
    # auto (ring where there are several devices, else tiled)|ring|tiled|definition: same numbers
    loss.implementation = "auto"
    loss.kernel = "xla"  # xla|pallas (TPU kernels; interpreted elsewhere, slowly): what ring and tiled compute with
    loss.low_rank = False  # word level in the width of the shallow features (512, not 768): same loss, fewer products

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"  # adam (L2 added to the gradient, as published)|adamw|sgd|lion
    optimizer.lr = 2e-5
    optimizer.b1 = 0.5
    optimizer.b2 = 0.999
    optimizer.weight_decay = 1e-6
    optimizer.clip_norm = 0.25  # global norm; 0: no clipping
    optimizer.schedule = "exponential"  # exponential (x decay after each epoch)|cosine|plateau|constant
    optimizer.decay = 0.9  # factor per epoch (exponential) or per plateau
    optimizer.warmup_steps = 0  # linear warm-up before the schedule

    config.training = training = ConfigDict()
    training.batch_size = 128  # global, over all devices
    training.epochs = 5
    training.steps = 0  # number of steps; 0: epochs decide
    training.precision = "bfloat16"  # float32|bfloat16 (parameters, statistics and losses stay float32)
    # pairs encoded at once, over all devices, before one exact loss over the whole batch (less memory, the forward pass
    # twice; training/gradients.py says what it means for batch statistics); 0: all at once
    training.micro_batch = 0
    training.remat = "none"  # none|blocks|full: what of the encoders is computed again in the backward pass
    # devices that share one copy of parameters and optimiser state, a part on each; 1: all of it on every device
    training.fsdp = 1
    training.log_every = 10  # steps
    training.validate_every = 0  # steps; 0: at the end of each epoch
    training.keep_best = 5  # checkpoints kept by validation loss, beside the last one
    training.checkpoint_every = 0  # steps between `last` checkpoints; 0: at each validation
    training.early_stopping = 10  # validations without improvement; 0: never

    config.localization = localization = ConfigDict()
    localization.sigma = 1.5  # width of the Gaussian that smooths heat maps, in cells of a 19 x 19 grid
    localization.cells = "tiles"  # tiles (published)|receptive_field: where the cells of the deep map lie in the image
    localization.prompt_level = "report"  # report|sentence (the unit that the deep map was trained to meet)
    localization.similarity = "dot"  # dot (published)|presence: a soft step of the cosine
    localization.presence_sharpness = 8.0  # slope of that step
    localization.presence_threshold = 0.5  # cosine in the middle of that step
    localization.presence_growth = 0.0  # by how much the step is lower for every doubling of the finding's extent

    config.evaluation = evaluation = ConfigDict()
    # What the trained model is scored on: ConfigDicts with these keys (docs/training.md says what each means).
    # Always name and directory; optionally raw, builder, split, validation_split, title, compatible, bootstrap,
    # interval, unit. Localisation: protocol, class_prompt, prior_split, thresholds, margin. With a task
    # (classification, retrieval, robustness): task, classes, prompts, aggregation, framing, labels, unlisted,
    # by_class, per_class, tops.
    evaluation.datasets = ()
    evaluation.bootstrap = 1000  # resamples for confidence intervals
    return config
