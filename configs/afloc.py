r"""The published network and objective, with our data and groups: ResNet-50 + BERT-base, batch 128, five epochs.

All other configs start from this one and state only what differs. Run:

    python launch.py --config=configs/afloc.py --config.data.raw=FOLDER --workdir=runs/afloc

The builder `pairs` reads FOLDER. For other data: --config.data.dataset=NAME --config.data.directory=DATA.
Where this departs from the published release, a comment says so, and docs/training.md why. The training of the release
is configs/published.py. From its initial weights, but otherwise as here:

    python launch.py --config=configs/afloc.py --config.data.raw=FOLDER --workdir=runs/afloc \
        --config.init_from="('resnet50.pth', 'Bio_ClinicalBERT/')"
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "afloc"  # title in the report and the model card
    config.seed = 1  # seed of initial parameters, shuffling, sentence sampling and dropout

    config.data = data = ConfigDict()
    data.dataset = "pairs"  # builder in data_pipelines/builders
    data.directory = "data"  # folder of prepared records; they are built there first if `raw` is given
    data.cache = ""  # folder of this machine to which records are copied once if `directory` is in a bucket, gs://
    data.raw = ""  # folder of raw files; empty: records must be prepared already (phantom needs none)
    data.builder = ConfigDict()  # keyword arguments of the builder, e.g. sizes and split fractions
    data.grey = "luma"  # luma|cv2 (grey values as cv2.imread(path, 0), which the release reads): how files become grey
    data.equalize = "none"  # none|release (of pixels that are not 0, its option)|cv2: histogram equalisation of images
    data.cleaning = "default"  # default|release (no one-word sentence, no decimal): rules that clean reports
    data.train_split = "train"
    data.validation_split = "validation"
    # subset: random non-empty subset in random order; impression: all of the impression, sampled findings; all
    # release_subset, release_impression: modes 1 and 2 of the release, see data_pipelines/batches.py
    data.sentences = "subset"
    data.validation_sentences = "all"  # all|sampled (as in training, anew at each validation: published)
    data.validation_drop_last = False  # True (published): leave out validation records that do not fill a batch
    data.augment = False  # True: small random shifts, scales and exposures (never flips: reports name sides)
    data.augment_on = "host"  # host|device (in the training step, where a core cannot augment fast enough)
    data.max_tokens = 97  # token slots per report; longer reports are cut
    # A vocabulary is learned from the words that stand in so many distinct reports, of so many patients (of reports
    # where the table names no patients). Others could be names, and the model folder shows its vocabulary to all.
    data.vocabulary_reports = 5
    data.vocabulary_patients = 3
    data.exclude_words = ""  # file of words that are never learned, such as names of physicians; --exclude_words
    # folder for the features of a frozen image tower (image.freeze), computed once, 16 times as large as the records
    data.features = ""
    data.workers = 0  # Grain worker processes; 0 reads in threads of this process

    config.model = model = ConfigDict()
    model.projection_dim = 768  # D, the shared width of image regions and text units
    model.normalize = False  # L2-normalise every embedding

    model.image = image = ConfigDict()
    # resnet18|34|50|101|152, resnext50|101, densenet121|161|169, dinov2_small|base|large, vit_small|base|large; for
    # laptops: resnet_small, dinov2_tiny, vit_tiny
    image.backbone = "resnet50"
    image.input_size = 299  # side in pixels to which the square is resized inside the model
    image.mean = (0.5,)  # pixels from [0, 1] become (x - mean) / std; one value or three
    image.std = (0.5,)
    # options of the backbone's structure: widths, strides, stages of resnet_small; patch, registers, shallow_block,
    # whole (class|mean), train_last (blocks that are trained) of vision transformers
    image.options = ConfigDict()
    # images, in order, that share batch statistics (published: 64, half a batch per device); 0: the whole batch
    image.statistics_group = 0
    image.center = False  # batch-normalise the projected features (not published)
    image.freeze = False  # keep the initial parameters of the backbone

    model.text = text = ConfigDict()
    text.bert = ConfigDict()  # fields of a Hugging Face BertConfig; BERT-base where not given
    text.tokenizer = ""  # folder with vocab.txt; empty: a vocabulary is learned from the training reports
    text.last_layers = 4  # hidden states that are combined
    text.merge_layers = "sum"  # sum|mean over those layers
    text.merge_pieces = "sum"  # sum|mean of word pieces into words
    text.context = "report"  # report|sentence (each sentence is read on its own: not published)
    # width of CXR-BERT's projection head, by which text units come to the width D (not published); 0: none
    text.projection = 0
    text.freeze = False  # keep the initial parameters of the text encoder; a projection head is trained all the same

    # Weights to start from; empty: random initialisation. A model folder, or a path (or a tuple of paths) to a
    # checkpoint, a ResNet or DenseNet, a Hugging Face BERT folder or hub name: docs/weights.md
    config.init_from = FieldReference("", field_type=object)

    config.loss = loss = ConfigDict()
    loss.weights = ConfigDict({"report": 1.0, "sentence": 1.0, "word": 1.0})  # 0 switches a level off
    loss.attention_temperature = 4.0  # temp1: sharpness of the softmax over regions
    loss.pooling_temperature = 5.0  # temp2: sharpness of the sum over text units
    loss.contrast_temperature = 10.0  # temp3: scale of similarities in the cross entropies
    loss.word_map = "shallow"  # shallow|deep (as GLoRIA, which has one map): what words are compared with
    # attention|logsumexp (a soft maximum over regions: not published)|similarity (of RadZero: configs/radzero.py)
    loss.region_pooling = "attention"
    loss.region_sharpness = 10.0  # sharpness of that soft maximum, or of RadZero's softmax
    # softmax (cross entropies: published)|sigmoid (SigLIP, arXiv 2303.15343, at every level: a decision for each pair)
    loss.objective = "softmax"
    loss.sigmoid_bias = -10.0  # with sigmoid this bias and contrast_temperature are learned, from these values on
    loss.contrast_unit = "caption"  # caption|unit (each unit has to find its own image: not published)
    loss.unit_negatives = "images"  # images|both (other images, and units of other captions): what a unit is told from
    loss.contrast_group = 0  # pairs contrasted with each other (published: 64); 0: the whole global batch
    # batch|length (published: the batch is sorted by caption length, longest first, before it is split into groups)
    loss.contrast_group_order = "batch"
    # pairs of a group with the same text are: negative (of each other: published)|mask (neither)|share (both right)
    loss.twins = "negative"
    # captions made from each report by rules (other side, denied, affirmed: data_pipelines/negatives.py) that its image
    # must not match, at the sentence level; 0: none (published). Ours, after NegCLIP, arXiv 2210.01936.
    loss.hard_negatives = 0
    # auto (ring on several devices, else tiled)|ring|tiled|definition: all give the same numbers
    loss.implementation = "auto"
    loss.kernel = "xla"  # xla|pallas (TPU kernels)|triton (GPU kernels; both slowly interpreted elsewhere): tiles
    loss.tile_memory = "auto"  # MiB of a device's memory for a tile of the local losses; auto: what suits the device
    loss.kept_memory = "auto"  # MiB that the forward pass keeps of tiles for the backward pass; auto: some, on CPUs
    # True|False|auto (True wherever that is possible and less work; the log says): compute the word level in the width
    # of the shallow features (512, not 768). It gives the same loss.
    loss.low_rank = FieldReference("auto", field_type=object)

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"  # adam (L2 added to the gradient, as published)|adamw|sgd|lion
    optimizer.lr = 2e-5
    optimizer.b1 = 0.5
    optimizer.b2 = 0.999
    optimizer.weight_decay = 1e-6
    optimizer.clip_norm = 0.25  # global norm; 0: no clipping
    optimizer.schedule = "exponential"  # exponential (x decay after each epoch)|cosine|plateau|constant
    optimizer.decay = 0.9  # factor of the learning rate per epoch (exponential) or per plateau
    optimizer.warmup_steps = 0  # linear warm-up before the schedule

    config.training = training = ConfigDict()
    training.batch_size = 128  # global, over all devices
    training.epochs = 5
    training.steps = 0  # number of steps; 0: that of `epochs`
    training.precision = "bfloat16"  # float32|bfloat16 (parameters, statistics and losses stay float32)
    # pairs encoded at once, over all devices, before one exact loss of the whole batch; 0: all at once. It takes less
    # memory and a second forward pass; training/gradients.py explains the effect on batch statistics.
    training.micro_batch = 0
    training.remat = "none"  # none|blocks|full: what the backward pass of the encoders computes again
    # devices that share one copy of parameters and optimiser state; 1: a full copy on every device
    training.fsdp = 1
    training.log_every = 10  # steps
    training.validate_every = 0  # steps; 0: at the end of each epoch
    training.keep_best = 5  # checkpoints kept by validation loss, in addition to the last one
    training.checkpoint_every = 0  # steps between checkpoints; 0: at each validation only
    training.early_stopping = 10  # validations without improvement (the release states 10, attaches none); 0: never
    # how a finished run goes on when it is given more steps or epochs: none|reschedule|hold (docs/training.md)
    training.extend = "none"
    training.trackers = ()  # of wandb, mlflow: trackers that get the numbers and settings too (docs/training.md)

    config.localization = localization = ConfigDict()
    localization.sigma = 1.5  # width of the Gaussian that smooths heat maps, in cells of a 19 x 19 grid
    localization.cells = "tiles"  # tiles (published)|receptive_field: where the cells of the deep map lie in the image
    localization.prompt_level = "report"  # report|sentence (which the deep map is contrasted with in training)
    localization.similarity = "dot"  # dot (published)|presence: a soft step of the cosine
    localization.presence_sharpness = 8.0  # slope of that step
    localization.presence_threshold = 0.5  # cosine at the middle of that step
    localization.presence_growth = 0.0  # decrease of that cosine for every doubling of the finding's extent
    localization.sharpen = False  # a step at mean + 2 std of the map (docs/localize.md); not published

    config.evaluation = evaluation = ConfigDict()
    # Data sets that the trained model is evaluated on: ConfigDicts with these keys (docs/training.md explains them).
    # Required: name, directory. Optional: raw, cache, builder, split, validation_split, title, compatible, bootstrap,
    # interval, unit. Localisation: protocol, class_prompt, prior_split, thresholds, margin, sharpen,
    # prune, windows. Other tasks
    # (classification, retrieval, robustness, counterfactual): task, classes, prompts, aggregation, framing, labels,
    # unlisted, by_class, per_class, tops.
    evaluation.datasets = ()
    evaluation.bootstrap = 1000  # resamples for confidence intervals
    evaluation.calibrate = True  # presence of prompts, fitted on the validation data (docs/presence.md)
    return config
