"""Images and the truth about them: data sets, transforms of image and truth together, and how data sets are mixed."""

from torchdpt.data.batches import Batch, batches
from torchdpt.data.mixing import Draw, Mixture
from torchdpt.data.sample import Dataset, Sample
from torchdpt.data.scenes import SceneDataset
from torchdpt.data.transforms import Augmentation

__all__ = ["Augmentation", "Batch", "Dataset", "Draw", "Mixture", "Sample", "SceneDataset", "batches"]
