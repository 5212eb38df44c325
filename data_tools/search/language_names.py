"""Names of languages, as they stand before a description on Wikimedia Commons: in the language
itself ("Deutsch: Ein Haus") and in English ("German: Ein Haus").

The table has the languages of most descriptions there, by their codes.
"""

from __future__ import annotations

NAMES = """
af Afrikaans|Afrikaans
als Alemannic|Alemannisch
am Amharic|አማርኛ
an Aragonese|aragonés
ar Arabic|العربية
arz Egyptian Arabic|مصرى
ast Asturian|asturianu
az Azerbaijani|azərbaycanca
ba Bashkir|башҡортса
bar Bavarian|Boarisch
be Belarusian|беларуская
be-tarask Belarusian|беларуская
bg Bulgarian|български
bn Bangla|বাংলা|Bengali
br Breton|brezhoneg
bs Bosnian|bosanski
ca Catalan|català
ceb Cebuano|Cebuano
ckb Central Kurdish|کوردی
cs Czech|čeština
cy Welsh|Cymraeg
da Danish|dansk
de German|Deutsch
de-at Austrian German|Österreichisches Deutsch
de-ch Swiss High German|Schweizer Hochdeutsch
el Greek|Ελληνικά
en English|English
en-ca Canadian English|Canadian English
en-gb British English|British English
en-us American English|American English
eo Esperanto|Esperanto
es Spanish|español
et Estonian|eesti
eu Basque|euskara
fa Persian|فارسی
fi Finnish|suomi
fo Faroese|føroyskt
fr French|français
fy Western Frisian|Frysk
ga Irish|Gaeilge
gd Scottish Gaelic|Gàidhlig
gl Galician|galego
gsw Swiss German|Schwiizertüütsch
gu Gujarati|ગુજરાતી
he Hebrew|עברית
hi Hindi|हिन्दी
hr Croatian|hrvatski
hu Hungarian|magyar
hy Armenian|հայերեն
ia Interlingua|interlingua
id Indonesian|Bahasa Indonesia
io Ido|Ido
is Icelandic|íslenska
it Italian|italiano
ja Japanese|日本語
jv Javanese|Jawa
ka Georgian|ქართული
kk Kazakh|қазақша
km Khmer|ភាសាខ្មែរ
kn Kannada|ಕನ್ನಡ
ko Korean|한국어
ku Kurdish|kurdî
ky Kyrgyz|кыргызча
la Latin|Latina
lb Luxembourgish|Lëtzebuergesch
lt Lithuanian|lietuvių
lv Latvian|latviešu
mg Malagasy|Malagasy
mk Macedonian|македонски
ml Malayalam|മലയാളം
mn Mongolian|монгол
mr Marathi|मराठी
ms Malay|Bahasa Melayu
mt Maltese|Malti
my Burmese|မြန်မာဘာသာ
nb Norwegian Bokmål|norsk bokmål
nds Low German|Plattdüütsch
ne Nepali|नेपाली
nl Dutch|Nederlands
nn Norwegian Nynorsk|norsk nynorsk
no Norwegian|norsk
oc Occitan|occitan
pa Punjabi|ਪੰਜਾਬੀ
pl Polish|polski
pt Portuguese|português
pt-br Brazilian Portuguese|português do Brasil
ro Romanian|română
ru Russian|русский
scn Sicilian|sicilianu
sco Scots|Scots
sh Serbo-Croatian|srpskohrvatski
si Sinhala|සිංහල
simple Simple English|Simple English
sk Slovak|slovenčina
sl Slovenian|slovenščina
sq Albanian|shqip
sr Serbian|српски|srpski
sv Swedish|svenska
sw Swahili|Kiswahili
ta Tamil|தமிழ்
te Telugu|తెలుగు
th Thai|ไทย
tl Tagalog|Tagalog
tr Turkish|Türkçe
tt Tatar|татарча
uk Ukrainian|українська
ur Urdu|اردو
uz Uzbek|oʻzbekcha
vec Venetian|vèneto
vi Vietnamese|Tiếng Việt
yi Yiddish|ייִדיש
yue Cantonese|粵語
zh Chinese|中文
zh-cn Chinese|中文
zh-hans Simplified Chinese|简体中文
zh-hant Traditional Chinese|繁體中文
zh-tw Chinese|中文
"""
_LINES = [line.split(" ", 1) for line in NAMES.strip().splitlines()]
LANGUAGE_CODES = frozenset(code for code, _ in _LINES)
LANGUAGE_NAMES = frozenset(name.casefold() for _, names in _LINES for name in names.split("|"))
