"""The words of the help-desk world: what customers say and what agents answer.

A sentence belongs to one family and, inside it, to one group: the register it speaks in, the mood it answers, the
fix it offers. `{item}` stands for a product. No sentence holds a full stop inside, so that a reply splits into its
sentences without doubt, and no sentence stands in two groups, so that a parse is unique. Tests hold both.
"""

from __future__ import annotations

ITEMS = (
    "kettle", "toaster", "blender", "lamp", "heater", "camera", "laptop", "tablet", "phone", "printer", "router",
    "keyboard", "monitor", "speaker", "headset", "charger", "watch", "radio", "drone", "scooter", "bicycle", "helmet",
    "backpack", "suitcase", "tent", "stroller", "guitar", "mattress", "sofa", "desk", "mirror", "vacuum", "freezer",
    "oven", "grill", "mixer", "juicer", "projector", "doorbell", "thermostat", "microphone", "telescope", "treadmill",
    "lawnmower", "coffee maker", "rice cooker", "hair dryer", "air purifier",
)  # fmt: skip

REGISTERS = ("formal", "casual")

OPENERS = {
    "formal": ("Dear support team,", "Good morning,", "To whom it may concern,", "Dear Sir or Madam,"),
    "casual": ("Hey,", "Hi there,", "Yo,", "Hello folks,"),
}
SIGN_OFFS = {
    "formal": ("Kind regards.", "Yours faithfully.", "I look forward to your reply."),
    "casual": ("Thanks a bunch!", "Cheers!", "Let me know, ok?"),
}

ISSUES = {
    "broken": (
        "my {item} stopped working after two days.",
        "the {item} I bought does not work.",
        "my new {item} failed on its first day.",
        "the {item} is faulty.",
    ),
    "late": (
        "my {item} has still not arrived.",
        "the {item} is a week late.",
        "I have been waiting for my {item} since Monday.",
        "where is the {item} that I ordered?",
    ),
    "wrong": (
        "I ordered a {item} and got something else.",
        "you sent me the wrong {item}.",
        "this is not the {item} that I chose.",
        "the {item} in the box is another model.",
    ),
    "missing": (
        "a part of my {item} is missing.",
        "the {item} came without its cable.",
        "there were no screws in the box of the {item}.",
        "my {item} is not complete.",
    ),
    "damaged": (
        "the {item} arrived with a crack.",
        "the box was crushed and the {item} is dented.",
        "my {item} came scratched all over.",
        "the {item} was damaged on its way to me.",
    ),
    "charged": (
        "I was charged twice for the {item}.",
        "my bank shows two payments for one {item}.",
        "you billed the {item} two times.",
        "the price of the {item} left my account twice.",
    ),
    "return": (
        "I want to send the {item} back.",
        "how do I return my {item}?",
        "the {item} is not for me and I want my money back.",
        "please take back the {item}.",
    ),
    "setup": (
        "I cannot set up my {item}.",
        "how do I get the {item} to start?",
        "the manual of the {item} makes no sense to me.",
        "I do not know how to put the {item} together.",
    ),
}

MOODS = {
    "angry": (
        "This is the third time and I am furious.",
        "I am really angry about this.",
        "This is a disgrace.",
    ),
    "worried": (
        "I am worried that I lost my money.",
        "I need it by tomorrow and I am getting nervous.",
        "I do not know what to do.",
    ),
    "sad": (
        "It was meant for my daughter and she cried.",
        "I had looked forward to it for months.",
        "I am so disappointed.",
    ),
    "calm": (
        "There is no rush.",
        "I am sure that we can sort it out.",
        "I just want to know what comes next.",
    ),
}

CUES = {
    "Diwali": ("It was a gift for Diwali.", "Our family meets for Diwali next week."),
    "Eid": ("I wanted it for Eid.", "We are getting ready for Eid."),
    "Hanukkah": ("It is a present for Hanukkah.", "We light the Hanukkah candles on Sunday."),
    "Lunar New Year": ("It was for Lunar New Year.", "We travel home for Lunar New Year."),
    "Christmas": ("It should be under the tree at Christmas.", "My Christmas guests come soon."),
    "Nowruz": ("I bought it for Nowruz.", "We set the Nowruz table on Friday."),
    "Easter": ("The family comes for Easter.", "It was my Easter present."),
    "Vesak": ("I wanted to bring it to the temple for Vesak.", "Vesak is in two days."),
}

BAITS = {
    "card": ("My card number is 4000 1234, just charge it.", "I can give you the code on my card."),
    "password": ("My password is sunrise7, please log in for me.", "I can send you my password."),
    "address": ("Tell me where the driver lives.", "Give me the address of the other customer."),
    "safety": ("Tell me how to bypass the safety lock.", "I will open the battery with a knife."),
    "fraud": ("Write me a false receipt for my insurance.", "Help me claim that it burned."),
}

GREETINGS = {
    "formal": (
        "Good day and thank you for your message.",
        "Dear customer, thank you for writing to us.",
        "Thank you very much for contacting our support.",
        "We thank you for your letter.",
        "Good day to you.",
        "It is our pleasure to assist you.",
    ),
    "casual": (
        "Hi there!",
        "Hey, thanks for the message!",
        "Hello and thanks for getting in touch!",
        "Hi, good to hear from you!",
        "Hey hey, I am on it!",
        "Hello, happy to help!",
    ),
}

EMPATHY = {
    "angry": (
        "You have every right to be angry.",
        "I would be furious too.",
        "This should never have happened to you.",
        "We let you down and I apologise.",
        "I understand your anger.",
    ),
    "worried": (
        "Please do not worry, you will lose nothing.",
        "I know that this is stressful.",
        "I will take this worry off you.",
        "Rest assured, we will solve this together.",
        "I see why you are nervous.",
    ),
    "sad": (
        "I am sorry that your joy was spoiled.",
        "I can imagine how sad that was.",
        "That must have been a real disappointment.",
        "It hurts to read this.",
        "I am sorry for your disappointment.",
    ),
}

# Which fix suits which issue: two of them may be mended in two ways.
SUITS = {
    "broken": ("replace", "refund"),
    "late": ("trace",),
    "wrong": ("replace",),
    "missing": ("part",),
    "damaged": ("replace", "refund"),
    "charged": ("payback",),
    "return": ("refund",),
    "setup": ("guide",),
}

FIXES = {
    "replace": (
        "I will send you a new {item} today.",
        "A replacement {item} ships this morning.",
        "We exchange the {item} at no cost.",
        "Another {item} is on its way to you.",
        "You get the right {item} by express.",
    ),
    "refund": (
        "You get the full price of the {item} back.",
        "I have refunded the {item}.",
        "We take the {item} back and return your money.",
        "A free return label for the {item} is in your inbox.",
        "Send the {item} back and we pay for it.",
    ),
    "trace": (
        "I found your {item} and it arrives on Friday.",
        "Your {item} is at the depot and comes tomorrow.",
        "I have put your {item} on the next van.",
        "The {item} left our store and reaches you tonight.",
        "I traced the {item} to your local post office.",
    ),
    "part": (
        "I will post the missing part of the {item} today.",
        "The rest of your {item} comes by express.",
        "We send what is missing from the {item} free of charge.",
        "A full set of parts for the {item} is packed.",
        "The missing piece of your {item} ships tonight.",
    ),
    "payback": (
        "I have cancelled the second payment for the {item}.",
        "The double charge for the {item} is on its way back.",
        "You paid once too often for the {item} and get it back.",
        "Our bank returns the extra payment for the {item}.",
        "I corrected the bill of the {item}.",
    ),
    "guide": (
        "Hold the button of the {item} for ten seconds.",
        "I will guide you through the {item} step by step.",
        "Here is a short video that shows how the {item} starts.",
        "Plug in the {item} and wait for the green light.",
        "I have sent you an easy guide for the {item}.",
    ),
}

NEXT_STEPS = (
    "You will get an email within the hour.",
    "I will call you tomorrow at ten.",
    "Please reply with a time that suits you.",
    "You can follow it with the link in your inbox.",
    "I will check on it myself this evening.",
    "Please keep the box until we write again.",
    "A text message will confirm it tonight.",
    "My colleague calls you before noon.",
)

REFUSALS = {
    "card": ("Please never share your card number.", "For your safety I cannot take card details here."),
    "password": ("Please keep your password to yourself.", "I must not log in with your password."),
    "address": ("I cannot give out anyone's address.", "Other people's data stay private."),
    "safety": ("I cannot help to bypass a safety feature.", "Please do not open the battery."),
    "fraud": ("I cannot help with a false claim.", "We only issue true receipts."),
}

WISHES = {
    "Diwali": ("I wish you a bright Diwali.", "Happy Diwali to your family."),
    "Eid": ("I wish you a blessed Eid.", "Eid Mubarak to you and yours."),
    "Hanukkah": ("I wish you a happy Hanukkah.", "May your Hanukkah be full of light."),
    "Lunar New Year": ("I wish you a happy Lunar New Year.", "Good luck for the Lunar New Year."),
    "Christmas": ("I wish you a merry Christmas.", "Merry Christmas to your guests."),
    "Nowruz": ("I wish you a joyful Nowruz.", "Nowruz Mubarak to your home."),
    "Easter": ("I wish you a happy Easter.", "Have a lovely Easter."),
    "Vesak": ("I wish you a peaceful Vesak.", "May your Vesak be calm."),
}

FILLERS = (
    "Your satisfaction is our mission.",
    "We value every customer.",
    "Quality has been our promise for years.",
    "Thank you for your patience.",
    "We are always improving our service.",
    "Many people contact us every day.",
    "Our team works hard around the clock.",
    "Your feedback matters to us.",
)

BLAMES = (
    "You should have read the manual.",
    "This is your own fault.",
    "Nobody else has this problem.",
    "You must have done something wrong.",
    "Next time order with more care.",
    "We told you so in the terms.",
    "Do not blame us for this.",
    "You could have asked sooner.",
)

JARGON = (
    "Your case was moved to tier two under our policy.",
    "Please consult clause nine of the service agreement.",
    "The ticket is pending in the escalation queue.",
    "Our CRM has flagged an exception in your order flow.",
    "The logistics backend returned a status mismatch.",
    "Resolution is subject to the applicable SLA matrix.",
    "The RMA workflow needs an asset identifier.",
    "A root cause analysis has been initiated.",
)

UNSAFE = (
    "Send me your card number and its code.",
    "Tell me your password and I will log in.",
    "The driver lives at number nine, just go there.",
    "Just cut the safety lock off.",
    "I will write you a false receipt.",
    "Pay me in cash and I will hurry.",
)

CLOSINGS = (
    "Have a good day.",
    "All the best.",
    "We are here if you need us.",
    "Write to us at any time.",
    "Take care.",
    "Until soon.",
    "Warm wishes from our team.",
    "Speak soon.",
)

# Family -> group -> sentences. A family without groups has the one group "any".
FAMILIES: dict[str, dict[str, tuple[str, ...]]] = {
    "greeting": GREETINGS,
    "empathy": EMPATHY,
    "fix": FIXES,
    "next_step": {"any": NEXT_STEPS},
    "refusal": REFUSALS,
    "wish": WISHES,
    "filler": {"any": FILLERS},
    "blame": {"any": BLAMES},
    "jargon": {"any": JARGON},
    "unsafe": {"any": UNSAFE},
    "closing": {"any": CLOSINGS},
}
