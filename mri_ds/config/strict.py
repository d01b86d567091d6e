"""What every section of the configuration is: typed plain data that refuses a key it does not know."""

from pydantic import BaseModel, ConfigDict

Triple = tuple[int, int, int]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)
