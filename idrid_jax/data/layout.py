"""IDRiD's own names: grades, splits, lesions, folders, and the header lines of its CSV files.

Porwal et al., "Indian Diabetic Retinopathy Image Dataset (IDRiD)", Data 2018, 3(3):25, doi:10.3390/data3030025. The
reader (`release`) and the writer (`release_writer`) share these names, so what is written can be read again.
"""

GRADES = ("NO_DR", "MILD", "MODERATE", "SEVERE", "PROLIFERATIVE")  # the ICDR scale, 0 to 4
EDEMA = (0, 1, 2)  # risk of macular edema
SPLITS = ("train", "test")
LESIONS = {
    "MA": "1. Microaneurysms",
    "HE": "2. Haemorrhages",
    "EX": "3. Hard Exudates",
    "SE": "4. Soft Exudates",
    "OD": "5. Optic Disc",
}

PARTS = {"A": "A. Segmentation", "B": "B. Disease Grading", "C": "C. Localization"}
IMAGES = "1. Original Images"
TRUTHS = {"A": "2. All Segmentation Groundtruths", "B": "2. Groundtruths", "C": "2. Groundtruths"}
SPLIT_FOLDERS = {"train": "a. Training Set", "test": "b. Testing Set"}
GRADING_CSV = {
    "train": "a. IDRiD_Disease Grading_Training Labels.csv",
    "test": "b. IDRiD_Disease Grading_Testing Labels.csv",
}
DISC_CSV = {
    "train": "1. Optic Disc Center Location/a. IDRiD_OD_Center_Training Set_Markups.csv",
    "test": "1. Optic Disc Center Location/b. IDRiD_OD_Center_Testing Set_Markups.csv",
}
FOVEA_CSV = {  # without the a. and b. of all other files, as distributed
    "train": "2. Fovea Center Location/IDRiD_Fovea_Center_Training Set_Markups.csv",
    "test": "2. Fovea Center Location/IDRiD_Fovea_Center_Testing Set_Markups.csv",
}
GRADING_HEADER = "Image name,Retinopathy grade,Risk of macular edema "  # with the trailing space, as distributed
GRADING_PADDING = {"train": "," * 9, "test": ""}  # nine empty columns in the training labels only
MARKUP_HEADER = "Image No,X- Coordinate,Y - Coordinate"
MARKUP_PADDING = "," * 45

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
MASK_SUFFIXES = (".tif", ".tiff", ".png")
