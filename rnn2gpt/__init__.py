"""The models of *From RNN to GPT*, one module for each idea.

| module           | what it holds                                                    | chapter  |
|------------------|------------------------------------------------------------------|----------|
| `data`           | the text, its characters as numbers, the split, random batches   | 01       |
| `metrics`        | cross-entropy, perplexity, bits per character                    | 01       |
| `ngram`          | bigram tables and the interpolated Kneser–Ney model              | 01       |
| `rnn`            | the tanh cell, unrolled; gradient clipping; a character model    | 02       |
| `lstm`           | LSTM and GRU cells, the layer, a character model, sampling       | 03       |
| `seq2seq`        | encoder and decoder, attention to what was read                  | 04       |
| `translation`    | three translation tasks: pairs, vocabularies, padded batches     | 04       |
| `translator`     | a model that translates: trained, asked, judged                  | 04, 07   |
| `attention`      | scaled dot-product attention, masks, self-attention              | 05       |
| `multi_head`     | several heads side by side                                       | 06       |
| `positions`      | sinusoids, rotation, a penalty on distance                       | 06       |
| `transformer`    | norms, blocks, encoder and decoder                               | 07       |
| `tokenizer`      | byte-level byte-pair encoding; GPT-2's tokenizer                 | 08       |
| `gpt`            | the decoder-only model, its size and cost in closed form         | 09       |
| `pretrained`     | GPT-2's weights from a folder, a file or the hub                 | 09       |
| `training`       | one training loop for all models: budgets, schedule, resume      | 10       |
| `optim`          | which weights decay, schedules, accumulation, Muon               | 10       |
| `modern`         | the GPT with what changed since GPT-2, each change a switch      | 10       |
| `scaling`        | loss against parameters and tokens, fitted                       | 10       |
| `distributed`    | several processes, one run                                       | 10       |
| `devices`        | a device, its precision and speed, what to lower when it is full | 10       |
| `generation`     | filters, sampling, beams                                         | 11       |
| `kv_cache`       | keys and values kept from token to token                         | 11       |
| `quantization`   | weights in eight bits                                            | 11       |
| `bert`           | the encoder that fills in what was hidden                        | 12       |
| `sentiment`      | labeled sentences, English and Chinese                           | 13       |
| `entities`       | named entities in generated sentences                            | 13       |
| `finetune`       | a pretrained GPT that answers with a label                       | 13       |
| `classifier`     | how a classifier is trained, asked and judged                    | 13       |
| `lora`           | low-rank adaptation                                              | 13       |
| `tasks`          | six tasks as text                                                | 14       |
| `instruct`       | instruction tuning                                               | 14       |
| `dpo`            | preferences                                                      | 14       |
| `interpret`      | the stream, the attention, heads switched off                    | 15       |
| `evaluation`     | how good a model is, and how well it knows that                  | 10, 15   |
| `vision`         | patches of a picture in front of the text                        | 16       |
| `capstone`       | a GPT put together from parts, proved equal, trained             | 17       |
| `entry`          | a small GPT as two files, read with suspicion, scored            | 17       |
| `checkpoint`     | models on disk, without pickle; the list of models that train    |          |
| `run_log`        | what a run writes about itself                                   |          |

The exercises build the explicit version of each part; here PyTorch's fused operations do the same
arithmetic, and `tests/` prove that the two agree. Every module runs on any device.
"""

__version__ = "0.1.0"
