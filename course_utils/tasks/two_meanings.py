"""Words of two meanings, each told by the words after it. Notebook 03. Written for the course."""

from __future__ import annotations

from typing import NamedTuple


class TwoMeanings(NamedTuple):
    """`start` ends with the word; each continuation goes with the likeness of its meaning."""

    word: str
    start: str
    continuations: tuple[str, str]
    likenesses: tuple[str, str]


_LINES = """\
bank | We looked at the bank | of the river | of England | shore | money
bat | He picked up the bat | to hit the ball | with its wings folded | stick | animal
spring | I waited for the spring | after a long winter | to snap back into shape | season | coil
match | She lost the match | in the third set | and could not light the fire | game | flame
seal | They saw the seal | swim in the sea | on the envelope | animal | stamp
crane | I watched the crane | lift the steel beams | fly over the lake | machine | bird
bark | We heard about the bark | of the dog | of the oak | noise | wood
nail | She broke the nail | on her finger | with a hammer | skin | iron
palm | He touched the palm | of her hand | on the beach | fist | tree
mouse | She moved the mouse | to click on the icon | away from the hungry cat | computer | animal
trunk | They opened the trunk | of the car | of the elephant | vehicle | nose
pitcher | He looked at the pitcher | throw the ball | of cold water | player | jug
ring | I heard of the ring | on her finger | of the telephone | gold | sound
fan | He was a fan | of the football team | with three blades | supporter | machine
watch | They gave me a watch | with a leather strap | at midnight on the ship | clock | guard
file | She needed the file | from the computer | to smooth the metal | document | tool
letter | He looked at the letter | in the alphabet | in the envelope | character | mail
plant | She visited the plant | where cars are made | that grows in the garden | factory | flower
note | They heard about the note | played on the piano | left on the table | music | paper
organ | We spoke of the organ | in the church | that pumps the blood | music | body
bow | She held the bow | of red ribbon in her hair | and shot an arrow | ribbon | weapon
bolt | He saw the bolt | of lightning in the sky | in the door | flash | lock
chest | She looked at the chest | of the patient | full of gold coins | body | box
court | We walked to the court | to hear the judge | to play tennis | law | sport
deck | She looked at the deck | of the ship | of cards | boat | game
drill | They heard the drill | through the concrete wall | of marching soldiers | tool | exercise
pen | He looked for the pen | to sign the letter | where the pigs are kept | ink | farm
pipe | We looked at the pipe | and smelled the tobacco | under the leaking sink | smoke | water
pool | They talked about the pool | where children swim | of money for the prize | water | fund
port | They enjoyed the port | after dinner with cheese | where the ships unload | wine | harbour
racket | He disliked the racket | with the broken strings | of neighbours at night | tennis | noise
scale | She studied the scale | in the bathroom | played by the pianist | balance | music
sole | He looked at the sole | of his shoe | on the plate with lemon | foot | fish
star | They watched the star | in the night sky | of the new film | planet | actor
tank | We saw the tank | full of tropical fish | rolling to the battle | aquarium | weapon
tie | He was unhappy with the tie | around his neck | at the end of the game | clothing | result
wave | She saw the wave | break on the beach | of his hand from the train | sea | greeting
yard | They measured the yard | of cloth | behind the house | length | garden
ball | She remembered the ball | that broke the window | where she danced all night | toy | party
cell | They looked at the cell | under the microscope | of the prisoner | biology | jail
"""


def load() -> list[TwoMeanings]:
    """The forty words, in one order."""
    rows = (line.split(" | ") for line in _LINES.splitlines())
    return [TwoMeanings(word, start, (a, b), (x, y)) for word, start, a, b, x, y in rows]
