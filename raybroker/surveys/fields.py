"""The surveys' own fields: their names and Avro types, over every schema version that we know.

A field is written `name:type`, with `?` where it may be null. The order of the Rubin lists that are called `_9_0` is
that of Rubin's schema 9.0, so that packets written by it are readable with Rubin's own definition.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, str]
BANDS = "ugrizy"


def read(text: str, default: str = "") -> Fields:
    """Name to type, in order; `default` is the type of the names that are written without one.

    >>> read("jd:double magpsf rb:float?", default="float")
    {'jd': 'double', 'magpsf': 'float', 'rb': 'float?'}
    """
    pairs = (word.partition(":") for word in text.split())
    return {name: kind or default for name, _, kind in pairs}


def nullable(fields: Fields) -> Fields:
    """The same fields, each of which may be null."""
    return {name: f"{kind.rstrip('?')}?" for name, kind in fields.items()}


def kinds(fields: Fields, prefix: str = "") -> Fields:
    """Dotted path to type without the mark for null."""
    return {prefix + name: kind.rstrip("?") for name, kind in fields.items()}


def record(name: str, fields: Fields | dict[str, Any]) -> dict[str, Any]:
    """An Avro record; a value is a type of `read`, or any Avro schema."""
    return {"type": "record", "name": name, "fields": [_field(key, kind) for key, kind in fields.items()]}


def _field(name: str, kind: Any) -> dict[str, Any]:
    if isinstance(kind, str) and kind.endswith("?"):
        return {"name": name, "type": ["null", kind[:-1]], "default": None}
    if isinstance(kind, list) and kind[0] == "null":
        return {"name": name, "type": kind, "default": None}
    return {"name": name, "type": kind}


def _per_band(text: str) -> str:
    return " ".join(f"{band}_{word}" for band in BANDS for word in text.split())


# ZTF, of versions 1.3 to 4.02
_ZTF_STAMP = """
jd:double fid:int pid:long diffmaglim pdiffimfilename:string? programpi:string? programid:int candid:long
isdiffpos:string tblid:long? nid:int? rcid:int? field:int? xpos ypos ra:double dec:double magpsf sigmapsf chipsf magap
sigmagap distnr magnr sigmagnr chinr sharpnr sky magdiff fwhm classtar mindtoedge magfromlim seeratio aimage bimage
aimagerat bimagerat elong nneg:int? nbad:int? rb ssdistnr ssmagnr ssnamenr:string? sumrat magapbig sigmagapbig
ranr:double decnr:double
"""
ZTF_CANDIDATE = nullable(
    read(
        _ZTF_STAMP
        + """
sgmag1 srmag1 simag1 szmag1 sgscore1 distpsnr1 ndethist:int ncovhist:int jdstarthist:double? jdendhist:double?
scorr:double? tooflag:int? objectidps1:long? objectidps2:long? sgmag2 srmag2 simag2 szmag2 sgscore2 distpsnr2
objectidps3:long? sgmag3 srmag3 simag3 szmag3 sgscore3 distpsnr3 nmtchps:int rfid:long jdstartref:double
jdendref:double nframesref:int rbversion:string dsnrms ssnrms dsdiff magzpsci magzpsciunc magzpscirms nmatches:int
clrcoeff clrcounc zpclrcov zpmed clrmed clrrms neargaia neargaiabright maggaia maggaiabright exptime drb
drbversion:string
""",
        "float",
    )
)
ZTF_CANDIDATE_1_3 = nullable(read("sgmag srmag simag szmag sgscore", "float"))
ZTF_PREVIOUS = nullable(
    read(
        _ZTF_STAMP + "scorr:double? magzpsci magzpsciunc magzpscirms clrcoeff clrcounc rbversion:string",
        "float",
    )
)
ZTF_FORCED = nullable(
    read(
        """
field:int rcid:int fid:int pid:long rfid:long sciinpseeing scibckgnd scisigpix magzpsci magzpsciunc magzpscirms
clrcoeff clrcounc exptime adpctdif1 adpctdif2 diffmaglim programid:int jd:double forcediffimflux forcediffimfluxunc
procstatus:string distnr ranr:double decnr:double magnr sigmagnr chinr sharpnr
""",
        "float",
    )
)

# what the Fink broker adds to a ZTF alert, of its science versions up to 5
FINK_ADDED = nullable(
    read(
        """
cdsxmatch:string rf_snia_vs_nonia:double snn_snia_vs_nonia:double snn_sn_vs_all:double mulens:double roid:int
nalerthist:int rf_kn_vs_nonkn:double tracklet:string knscore:double anomaly_score:double DR3Name:string Plx:float
e_Plx:float gcvs:string vsx:string x3hsp:string x4lac:string spicy_id:int spicy_class:string tns:string
gaiaClass:string gaiaVarFlag:int jd_first_real_det:double jdstarthist_dt:double mag_rate:float sigma_rate:float
lower_rate:float upper_rate:float delta_time:float from_upper:boolean delta_mag:float rate:float
slsn_score:double finkclass:string fink_broker_version:string fink_science_version:string
timestamp:long brokerIngestTimestamp:long brokerStartProcessTimestamp:long brokerEndProcessTimestamp:long
"""
    )
)

# Rubin, of versions 7.0 to 11.1
RUBIN_SOURCE_9_0 = read(
    """
diaSourceId:long visit:long detector:int diaObjectId:long? ssObjectId:long? parentDiaSourceId:long?
midpointMjdTai:double ra:double raErr dec:double decErr ra_dec_Cov x:float xErr y:float yErr centroid_flag:boolean?
apFlux apFluxErr apFlux_flag:boolean? apFlux_flag_apertureTruncated:boolean? isNegative:boolean? snr psfFlux
psfFluxErr psfLnL psfChi2 psfNdata:int? psfFlux_flag:boolean? psfFlux_flag_edge:boolean?
psfFlux_flag_noGoodPixels:boolean? trailFlux trailFluxErr trailRa:double? trailRaErr trailDec:double? trailDecErr
trailLength trailLengthErr trailAngle trailAngleErr trailChi2 trailNdata:int? trail_flag_edge:boolean?
dipoleMeanFlux dipoleMeanFluxErr dipoleFluxDiff dipoleFluxDiffErr dipoleLength dipoleAngle dipoleChi2
dipoleNdata:int? scienceFlux scienceFluxErr forced_PsfFlux_flag:boolean? forced_PsfFlux_flag_edge:boolean?
forced_PsfFlux_flag_noGoodPixels:boolean? templateFlux templateFluxErr ixx iyy ixy ixxPSF iyyPSF ixyPSF
shape_flag:boolean? shape_flag_no_pixels:boolean? shape_flag_not_contained:boolean? shape_flag_parent_source:boolean?
extendedness reliability band:string? isDipole:boolean? dipoleFitAttempted:boolean? timeProcessedMjdTai:double
timeWithdrawnMjdTai:double? bboxSize:int? pixelFlags:boolean? pixelFlags_bad:boolean? pixelFlags_cr:boolean?
pixelFlags_crCenter:boolean? pixelFlags_edge:boolean? pixelFlags_nodata:boolean? pixelFlags_nodataCenter:boolean?
pixelFlags_interpolated:boolean? pixelFlags_interpolatedCenter:boolean? pixelFlags_offimage:boolean?
pixelFlags_saturated:boolean? pixelFlags_saturatedCenter:boolean? pixelFlags_suspect:boolean?
pixelFlags_suspectCenter:boolean? pixelFlags_streak:boolean? pixelFlags_streakCenter:boolean?
pixelFlags_injected:boolean? pixelFlags_injectedCenter:boolean? pixelFlags_injected_template:boolean?
pixelFlags_injected_templateCenter:boolean? glint_trail:boolean?
""",
    "float?",
)
RUBIN_SOURCE = RUBIN_SOURCE_9_0 | read(
    """
exposureTime trailAlgorithm:int? trail_flag:boolean? reliabilityVersion:string? time_processed:long? x_y_Cov
is_negative:boolean? psfRa:double? psfRaErr psfDec:double? psfDecErr psfFlux_psfRa_Cov psfFlux_psfDec_Cov
psfRa_psfDec_Cov trailFlux_trailRa_Cov trailFlux_trailDec_Cov trailFlux_trailLength_Cov trailFlux_trailAngle_Cov
trailRa_trailDec_Cov trailRa_trailLength_Cov trailRa_trailAngle_Cov trailDec_trailLength_Cov trailDec_trailAngle_Cov
trailLength_trailAngle_Cov trailLnL dipoleRa:double? dipoleRaErr dipoleDec:double? dipoleDecErr dipoleLengthErr
dipoleAngleErr dipoleMeanFlux_dipoleFluxDiff_Cov dipoleMeanFlux_dipoleRa_Cov dipoleMeanFlux_dipoleDec_Cov
dipoleMeanFlux_dipoleLength_Cov dipoleMeanFlux_dipoleAngle_Cov dipoleFluxDiff_dipoleRa_Cov
dipoleFluxDiff_dipoleDec_Cov dipoleFluxDiff_dipoleLength_Cov dipoleFluxDiff_dipoleAngle_Cov dipoleRa_dipoleDec_Cov
dipoleRa_dipoleLength_Cov dipoleRa_dipoleAngle_Cov dipoleDec_dipoleLength_Cov dipoleDec_dipoleAngle_Cov
dipoleLength_dipoleAngle_Cov dipoleLnL snapDiffFlux snapDiffFluxErr fpBkgd fpBkgdErr ixxErr iyyErr ixyErr ixx_iyy_Cov
ixx_ixy_Cov iyy_ixy_Cov
""",
    "float?",
)
RUBIN_FORCED_9_0 = read(
    """
diaForcedSourceId:long diaObjectId:long ra:double dec:double visit:long detector:int psfFlux psfFluxErr
midpointMjdTai:double scienceFlux scienceFluxErr band:string? timeProcessedMjdTai:double timeWithdrawnMjdTai:double?
""",
    "float?",
)
RUBIN_FORCED = RUBIN_FORCED_9_0 | read("time_processed:long? x y", "float?")
RUBIN_OBJECT_9_0 = read(
    "diaObjectId:long validityStartMjdTai:double ra:double raErr dec:double decErr ra_dec_Cov "
    + _per_band("psfFluxMean psfFluxMeanErr psfFluxSigma psfFluxNdata:int? fpFluxMean fpFluxMeanErr ")
    + " "
    + _per_band("scienceFluxMean scienceFluxMeanErr")
    + " "
    + _per_band("psfFluxMin psfFluxMax psfFluxMaxSlope psfFluxErrMean")
    + " firstDiaSourceMjdTai:double? lastDiaSourceMjdTai:double? nDiaSources:int",
    "float?",
)
RUBIN_OBJECT = RUBIN_OBJECT_9_0 | read(
    """
validityStart:long? radecMjdTai:double? pmRa pmRaErr pmDec pmDecErr parallax parallaxErr pmRa_pmDec_Cov
pmRa_parallax_Cov pmDec_parallax_Cov pmParallaxLnL pmParallaxChi2 pmParallaxNdata:int? nearbyObj1:long?
nearbyObj1Dist nearbyObj1LnP nearbyObj2:long? nearbyObj2Dist nearbyObj2LnP nearbyObj3:long? nearbyObj3Dist
nearbyObj3LnP
"""
    + _per_band("psfFluxChi2 fpFluxSigma"),
    "float?",
)
RUBIN_MOVING_9_0 = read(
    """
ssObjectId:long? diaSourceId:long? eclipticLambda:double? eclipticBeta:double? galacticL:double? galacticB:double?
phaseAngle heliocentricDist topocentricDist predictedVMagnitude residualRa:double? residualDec:double? heliocentricX
heliocentricY heliocentricZ heliocentricVX heliocentricVY heliocentricVZ topocentricX topocentricY topocentricZ
topocentricVX topocentricVY topocentricVZ
""",
    "float?",
)
RUBIN_MOVING = RUBIN_MOVING_9_0 | read(
    """
designation:string? eclLambda:double? eclBeta:double? galLon:double? galLat:double? elongation topoRange
topoRangeRate helioRange helioRangeRate ephRa:double? ephDec:double? ephVmag ephRate ephRateRa ephRateDec ephOffset
ephOffsetRa:double? ephOffsetDec:double? ephOffsetAlongTrack ephOffsetCrossTrack helio_x helio_y helio_z helio_vx
helio_vy helio_vz helio_vtot topo_x topo_y topo_z topo_vx topo_vy topo_vz topo_vtot diaDistanceRank:int?
""",
    "float?",
)
RUBIN_ORBIT_9_0 = read(
    "mpcDesignation:string? ssObjectId:long? mpcH:float? epoch M peri node incl e a q t_p", "double?"
)
