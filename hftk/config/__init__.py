"""Every setting of hftk: frozen dataclasses, one line of meaning and unit under each field.

The line under a field is its documentation, its ``--help`` and its meaning in ``config.yaml``; there is no
second place. Nothing here imports torch. :mod:`hftk.config.parse` reads flags and YAML into these classes.
"""

from hftk.config.data import DataConfig as DataConfig
from hftk.config.dotted import override as override
from hftk.config.dotted import setting as setting
from hftk.config.dotted import to_dict as to_dict
from hftk.config.evaluation import EvalConfig as EvalConfig
from hftk.config.evaluation import GenerationSettings as GenerationSettings
from hftk.config.model import AdapterConfig as AdapterConfig
from hftk.config.model import ModelConfig as ModelConfig
from hftk.config.model import QuantizationConfig as QuantizationConfig
from hftk.config.problems import DiskError as DiskError
from hftk.config.problems import InputError as InputError
from hftk.config.problems import PlainError as PlainError
from hftk.config.problems import Problem as Problem
from hftk.config.problems import ServiceError as ServiceError
from hftk.config.publish import PublishConfig as PublishConfig
from hftk.config.run import ALTERNATIVES as ALTERNATIVES
from hftk.config.run import RunConfig as RunConfig
from hftk.config.train import TrainConfig as TrainConfig
