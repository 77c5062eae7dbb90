"""Published data sets -> records of ``verl_care.data.records``: ``verl-care prepare NAME``, one module a data set.

Names. Training: ``video_r1``, ``video_r1_cot`` (supervised), ``video_holmes_mix``, ``cgbench``, ``temporal_rlt``,
``nextgqa``. Evaluation: ``vsi_bench``, ``video_mmmu``, ``mmvu``, ``mvbench``, ``tempcompass``, ``video_mme``,
``video_mme_subtitles``, ``video_holmes``, ``longvideobench``, ``lvbench``, ``videomathqa``, ``charades_sta``,
``activitynet_tvg``, ``video_mmmu_question_only``, ``cgbench_clue``, ``cgbench_miou``, and again ``nextgqa`` and
``cgbench``. ``verl-care prepare --list`` says what each reads.

Files. ``--out DIR`` (default ``$VERL_CARE_DATA_DIR/NAME``, else ``~/data/verl_care/NAME``) receives

- ``train.parquet`` and ``dev.parquet`` of a training set, disjoint by clip; ``test.parquet`` of an evaluation set; all
  three where both splits are published;
- ``manifest.json``: by split the hash of every source file, counts, options, what was left out, overlaps;
- ``<split>.errors.jsonl`` (``--max-errors``) and ``<split>.quarantine.jsonl`` (clips that cannot be trained on), where
  there are any; ``probes.jsonl``, what was found about each clip.

Rows. Columns of ``records.Row``; what a scorer of a benchmark may rely on:

- ``data_source``: the name above, so that verl reports ``val-core/<name>/…``;
- ``prompt``: one user turn, placeholders first, worded by ``verl_care.data.prompts`` (``--prompt STYLE``; some styles
  have a system turn too); whoever wants other words builds them from ``extra_info.question`` and ``options``;
- ``videos``: dicts with an absolute path, with ``video_start`` and ``video_end`` in seconds where the benchmark asks
  about a part of the file; sampling is left to ``data.care.video``;
- ``reward_model.ground_truth``: the letter; the number as text; the text; ``[[start, end], …]`` in seconds; for
  grounded QA ``{"answer": "B", "spans": [[start, end], …]}``;
- ``extra_info``: ``index`` (place in the published order, also where records in front of it were left out),
  ``problem_type``, ``id`` (text, the published id), ``question`` (as published, without options), ``options``
  (``A. …`` each, or empty), ``video_id`` (the clip's published name, by which bootstraps cluster and splits are
  disjoint), ``media_hash`` (of the clip's file), ``source`` (data set the record was taken from; the name again where
  there is no other), ``split`` (train, dev, test, validation), ``duration`` (seconds) and by data set

  =================== ================================================================================================
  video_r1, its kin   ``source`` is the published ``data_source``
  cgbench, its kin    ``clue_intervals`` (seconds; where published), ``domain``, ``sub_category``; ``cgbench_clue`` has
                      a video dict for each interval
  nextgqa             ``type`` (CW, CH, TN, TC, TP, …), ``qid``; grounded QA; its train split is multiple choice
  vsi_bench           ``question_type`` (ten published names), ``dataset``, ``scene_name``; numbers are ``regression``
  video_mmmu          ``track`` (Perception, Comprehension, Adaptation), ``question_type``, ``subject``, ``category``;
                      open questions are ``free-form``; ``…_question_only`` has the ``id`` of the same question
  mmvu                ``question_type``, ``subject``; multiple choice alone unless ``--set open=yes``
  mvbench             ``task_type`` (20 names with underscores)
  tempcompass         ``format`` (multi-choice, yes_no, caption_matching, captioning), ``aspect`` (action, direction,
                      speed, order, attribute_change); the first format alone unless ``--set formats=…``; the labels of
                      caption matching become letters, the last two formats are ``free-form``
  video_mme and       ``duration_class`` (short, medium, long), ``domain``, ``sub_category``, ``task_type``; the second
  …_subtitles         has ``subtitles``, the lines as they stand in the prompt
  video_holmes        ``question_type`` (SR, IMC, TCI, TA, MHR, PAR, CTI)
  longvideobench      ``question_category``, ``duration_group`` (15, 60, 600, 3600), ``subtitles``
  lvbench             ``question_type`` (list of names), ``time_reference``
  videomathqa         ``category``, ``duration_class``, ``config`` (mcq, multi_binary), ``question_id``, ``subtitles``
  charades_sta        ``query``
  activitynet_tvg     ``query``
  =================== ================================================================================================

``duration`` is always the clip's seconds; a class of durations is ``duration_class``. Keys without a value are left
out; in a Parquet file they read as None.

The supervised set has ``messages`` (user, assistant) in place of ``prompt`` and ``reward_model``, with ``videos`` and
``images`` beside it, for verl's sft trainer (``data.messages_key=messages``); its media say how they are sampled.
"""
