"""Every published sound-event-detection backbone as a plugin of the HEAR benchmark."""

__version__ = "0.1.0"
