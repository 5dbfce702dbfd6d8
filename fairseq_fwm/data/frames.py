"""The sentences around the values: frames, and the words that vary in them.

A frame is an English sentence and its German translation with the same ``{slots}``: those of
``WORDS`` below and of ``values.SLOTS``; ``{city2}`` asks for another filling of the same slot, a
later date or time, a higher price. Both sentences get their capital letter after filling.
"""

WORDS: dict[str, list[tuple[str, str]]] = {
    "vehicle": [
        ("the train", "der Zug"),
        ("the bus", "der Bus"),
        ("the night train", "der Nachtzug"),
        ("the ferry", "die Fähre"),
        ("the ship", "das Schiff"),
    ],
    "city": [
        ("Munich", "München"),
        ("Cologne", "Köln"),
        ("Vienna", "Wien"),
        ("Zurich", "Zürich"),
        ("Geneva", "Genf"),
        ("Prague", "Prag"),
        ("Milan", "Mailand"),
        ("Brussels", "Brüssel"),
        ("Copenhagen", "Kopenhagen"),
        ("Warsaw", "Warschau"),
        ("Hamburg", "Hamburg"),
        ("Rome", "Rom"),
    ],
    "event": [
        ("the concert", "das Konzert"),
        ("the meeting", "die Sitzung"),
        ("the exhibition", "die Ausstellung"),
        ("the lecture", "der Vortrag"),
        ("the course", "der Kurs"),
        ("the race", "das Rennen"),
        ("the journey", "die Reise"),
    ],
    "person": [
        ("my brother", "mein Bruder"),
        ("my sister", "meine Schwester"),
        ("our neighbour", "unser Nachbar"),
        ("the doctor", "die Ärztin"),
        ("the teacher", "der Lehrer"),
        ("Mrs Weber", "Frau Weber"),
        ("Mr Schmidt", "Herr Schmidt"),
    ],
    "item": [
        ("the bicycle", "das Fahrrad"),
        ("the lamp", "die Lampe"),
        ("the table", "der Tisch"),
        ("the camera", "die Kamera"),
        ("the coat", "der Mantel"),
        ("the sofa", "das Sofa"),
        ("the fridge", "der Kühlschrank"),
        ("the machine", "die Maschine"),
    ],
    "structure": [
        ("the bridge", "die Brücke"),
        ("the tunnel", "der Tunnel"),
        ("the wall", "die Mauer"),
        ("the rope", "das Seil"),
        ("the path", "der Weg"),
    ],
    "place": [
        ("the garden", "der Garten"),
        ("the plot", "das Grundstück"),
        ("the field", "das Feld"),
        ("the park", "der Park"),
        ("the island", "die Insel"),
    ],
    "goods": [
        ("apples", "Äpfel"),
        ("cheese", "Käse"),
        ("flour", "Mehl"),
        ("coffee", "Kaffee"),
        ("rice", "Reis"),
        ("potatoes", "Kartoffeln"),
    ],
    "liquid": [
        ("water", "Wasser"),
        ("milk", "Milch"),
        ("oil", "Öl"),
        ("apple juice", "Apfelsaft"),
    ],
    "things": [
        ("books", "Bücher"),
        ("cars", "Autos"),
        ("birds", "Vögel"),
        ("trees", "Bäume"),
        ("houses", "Häuser"),
        ("bicycles", "Fahrräder"),
        ("chairs", "Stühle"),
    ],
    "people": [
        ("people", "Menschen"),
        ("children", "Kinder"),
        ("guests", "Gäste"),
        ("students", "Studenten"),
    ],
}

FRAMES: list[tuple[str, str]] = [
    # Dates and times
    (
        "{vehicle} to {city} leaves {on_date} {at_time}.",
        "{vehicle} nach {city} fährt {on_date} {at_time} ab.",
    ),
    (
        "{on_date}, {vehicle} from {city} arrives {at_time}.",
        "{on_date} kommt {vehicle} aus {city} {at_time} an.",
    ),
    (
        "{vehicle} to {city} leaves {at_time} and arrives {at_time2}.",
        "{vehicle} nach {city} fährt {at_time} ab und kommt {at_time2} an.",
    ),
    ("does {vehicle} to {city} leave {at_time}?", "fährt {vehicle} nach {city} {at_time} ab?"),
    (
        "we are flying from {city} to {city2} {on_date}.",
        "wir fliegen {on_date} von {city} nach {city2}.",
    ),
    ("{event} begins {on_date} {at_time}.", "{event} beginnt {on_date} {at_time}."),
    ("{event} was cancelled {on_date}.", "{event} wurde {on_date} abgesagt."),
    (
        "{person} has an appointment {at_time} {on_date}.",
        "{person} hat {on_date} {at_time} einen Termin.",
    ),
    ("{person} was born {on_date}.", "{person} wurde {on_date} geboren."),
    ("today is {is_date}.", "heute ist {is_date}."),
    ("the shop is open from {time} to {time2}.", "das Geschäft ist von {time} bis {time2} offen."),
    ("please call me {at_time}.", "bitte rufen Sie mich {at_time} an."),
    (
        "the contract runs from {date} to {date2}.",
        "der Vertrag läuft vom {date} bis zum {date2}.",
    ),
    ("date of issue: {numeric_date}", "Ausstellungsdatum: {numeric_date}"),
    ("valid until: {numeric_date}", "gültig bis: {numeric_date}"),
    ("the house was built in {year_words}.", "das Haus wurde im Jahr {year_words} gebaut."),
    # Prices and percentages
    ("{item} costs {price}.", "{item} kostet {price}."),
    ("{item} costs {price} instead of {price2}.", "{item} kostet {price} statt {price2}."),
    (
        "{on_date}, the price rose by {percent} to {price}.",
        "{on_date} stieg der Preis um {percent} auf {price}.",
    ),
    ("please pay {price} by {date}.", "bitte zahlen Sie {price} bis zum {date}."),
    (
        "{person} paid {price} for {mass} of {goods}.",
        "{person} hat {price} für {mass} {goods} bezahlt.",
    ),
    (
        "with a discount of {percent}, {item} costs {price}.",
        "mit {percent} Rabatt kostet {item} {price}.",
    ),
    (
        "{vehicle} to {city} takes {journey} and costs {price}.",
        "{vehicle} nach {city} braucht {journey} und kostet {price}.",
    ),
    ("rents in {city} rose by {percent}.", "die Mieten in {city} sind um {percent} gestiegen."),
    ("the interest rate is {percent}.", "der Zinssatz beträgt {percent}."),
    (
        "{person} bought {count} shares at {price} each.",
        "{person} hat {count} Aktien zu je {price} gekauft.",
    ),
    # Quantities
    ("it is {distance} from {city} to {city2}.", "von {city} nach {city2} sind es {distance}."),
    ("{structure} is {length} long.", "{structure} ist {length} lang."),
    ("{item} weighs {weight}.", "{item} wiegt {weight}."),
    ("{place} measures {area}.", "{place} misst {area}."),
    ("{event} lasts {days}.", "{event} dauert {days}."),
    ("{event} lasted {days}.", "{event} hat {days} gedauert."),
    (
        "add {volume} of {liquid} and wait for {cooking}.",
        "{volume} {liquid} zugeben und {cooking} warten.",
    ),
    (
        "the temperature in {city} is {temperature}.",
        "die Temperatur in {city} beträgt {temperature}.",
    ),
    ("the top speed is {speed}.", "die Höchstgeschwindigkeit beträgt {speed}."),
    ("{item} uses {energy} a year.", "{item} verbraucht {energy} im Jahr."),
    ("the file is {size} in size.", "die Datei ist {size} groß."),
    # Numbers in words and digits
    ("the number is {number_words}.", "die Zahl lautet {number_words}."),
    ("{count_words} {people} live in {city}.", "{count_words} {people} leben in {city}."),
    (
        "{person} counted {count_words} {things}.",
        "{person} hat {count_words} {things} gezählt.",
    ),
    ("there are {count} {things} in {city}.", "in {city} gibt es {count} {things}."),
    (
        "{count} {things} were sold in {city} {on_date}.",
        "in {city} wurden {on_date} {count} {things} verkauft.",
    ),
    (
        "{person} lives on the {ordinal_words} floor.",
        "{person} wohnt im {ordinal_words}n Stock.",
    ),
    (
        "{event} is taking place for the {ordinal_words} time.",
        "{event} findet zum {ordinal_words}n Mal statt.",
    ),
    ("this is the {ordinal} attempt.", "das ist der {ordinal} Versuch."),
]
