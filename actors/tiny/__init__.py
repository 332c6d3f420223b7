"""Models of one or two million parameters, made in about a minute on a laptop: `tiny:addition`, `tiny:calculator`, …"""

from actors.tiny.addition import AdditionModel
from actors.tiny.calculator import CalculatorModel
from actors.tiny.caller import CallerModel
from actors.tiny.character import TinyModel
from actors.tiny.cook import CookModel
from actors.tiny.corrector import CorrectorModel
from actors.tiny.gambler import GamblerModel
from actors.tiny.player import PlayerModel
from actors.tiny.talker import TalkerModel
from actors.tiny.translator import TranslatorModel

MODELS: dict[str, type[TinyModel]] = {
    "addition": AdditionModel,
    "calculator": CalculatorModel,
    "caller": CallerModel,
    "cook": CookModel,
    "corrector": CorrectorModel,
    "gambler": GamblerModel,
    "player": PlayerModel,
    "talker": TalkerModel,
    "translator": TranslatorModel,
}
