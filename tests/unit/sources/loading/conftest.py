"""What blocks are produced from: two sources, of more files than there are lanes and of fewer."""

import pytest

from sources.config import DataConfig
from sources.registry import open_sources
from sources.rows.filters import Filters
from sources.rows.pipeline_config import PipelineConfig
from sources.rows.producer import ProducerSetup


@pytest.fixture
def setup(tmp_path, texts, tokenizer, write_json_lines) -> ProducerSetup:
    """Rows of 32 labels in four lanes; an epoch is some hundred rows of a lane."""
    short = [text[:500] for text in texts]
    write_json_lines(tmp_path / "many", short[::2], 6)
    write_json_lines(tmp_path / "few", short[1::2], 2)
    files = [{"type": "files", "path": str(tmp_path / name), "name": name} for name in ("many", "few")]
    config = PipelineConfig(tokenizer, 32, "best_fit", Filters(50), 4, True, 7, 0.0)
    return ProducerSetup(open_sources(DataConfig(sources=files)).sources, config, {})
