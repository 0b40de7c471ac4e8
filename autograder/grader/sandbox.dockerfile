# The image of `rnn2gpt grade --sandbox docker`: Python and what notebooks import, not the course.
FROM python:3.12-slim
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.13,<2.14"
RUN pip install --no-cache-dir \
    "numpy>=2.1" "matplotlib>=3.10" "jaxtyping>=0.3" "safetensors>=0.5" "tqdm>=4.67" \
    "platformdirs>=4.3" "babel>=2.17" "num2words>=0.5.14" "sacrebleu>=2.5" "regex>=2024.11.6"
USER 65534:65534
